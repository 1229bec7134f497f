"""When an equilibrium exists and is unique, and why one layer is enough."""
