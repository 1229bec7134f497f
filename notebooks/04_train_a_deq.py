# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a DEQ, and watch its equilibria
#
# A classifier whose one layer is an equilibrium, on scikit-learn's digits; then a small language
# model. Both learn. What there is to watch is what other models do not have: how many steps the
# solves take, whether they converge, and how long the gradients become on their way through them.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import deqjax
from deqjax import diagnostics, nn, training
from deqjax.data import Stream, load_corpus

plt.rcParams.update(diagnostics.style())
runs = Path(tempfile.mkdtemp())

# %%
pixels, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
x, y = pixels[order].astype(np.float32) / 16, digits[order]
figure, panels = plt.subplots(1, 12, figsize=(10, 1.2))
for ax, image, digit in zip(panels, x, y, strict=False):
    ax.imshow(image.reshape(8, 8), cmap="gray_r")
    ax.set_title(digit)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## A model and a task
#
# z\* = tanh(W z\* + U x + b), and a readout. `DEQ` solves and differentiates.


# %%
class Cell(nnx.Module):
    def __init__(self, width, rngs):
        small = nnx.initializers.normal(0.5 / width**0.5)
        self.w = nnx.Linear(width, width, use_bias=False, kernel_init=small, rngs=rngs)
        self.inject = nnx.Linear(64, width, rngs=rngs)  # of x alone: once per solve

    def initial_state(self, x):
        return jnp.zeros((len(x), self.w.in_features))

    def __call__(self, z, context):
        return jnp.tanh(self.w(z) + context)


# %%
class Classifier(nnx.Module):
    def __init__(self, cell, adjoint, rngs):
        self.deq = nn.DEQ(cell, adjoint=adjoint, rtol=1e-4)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x, **options):
        solution = self.deq(x, **options)
        return self.head(solution.z), solution.stats


# %%
class Digits(training.Task):
    def __init__(self, adjoint, cell=Cell):
        self.adjoint, self.cell = adjoint, cell

    def build(self, rngs):
        return Classifier(self.cell(64, rngs), self.adjoint, rngs)

    def batch(self, index, rows=slice(None)):
        drawn = np.random.default_rng(index).integers(360, len(y), 128)[rows]
        return x[drawn], y[drawn]

    def probe(self, phase, rows):
        return deqjax.adjoint_probe(rows)  # for the report of the adjoint's solve

    def loss(self, model, carry, batch, *, step, phase, probe):
        logits, stats = model(batch[0], adjoint_probe=probe)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return nats.mean(), (carry, {"solve": stats})


# %% [markdown]
# ## Train and watch
#
# `LiveView` is a hook of `fit`: it draws in place while the run is at work. A hook of our own looks
# at the spectrum of J for eight images, every 40 steps. The adjoint is the exact one, without any
# guard, and nothing clips the gradient.


# %%
spectra = []


def look(at):
    if at.step == 1 or at.step % 40 == 0:
        spectra.append((at.step, diagnostics.spectrum(at.model().deq, x[:8])))


options = training.TrainOptions(
    **dict(steps=400, batch_size=128, learning_rate=3e-3, schedule="constant", clip=1e6),
    **dict(log_every=2, runs=runs),
)
run = training.fit(Digits("implicit"), options, name="exact", hooks=(training.LiveView(5), look))

# %% [markdown]
# The loss says that all is well. But the steps have grown, and in the last panel there are steps in
# which a single sample multiplies its gradient by thousands. The spectrum says why:

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
diagnostics.plot_spectra(spectra, left, show="moduli")
diagnostics.plot_spectra([spectra[0], spectra[-1]], right)
plt.show()

# %% [markdown]
# At the start all eigenvalues are small, as W was drawn small. Training has drawn some of them out
# along the real axis, towards +1. These eight images are still on the safe side; for one image in
# some hundred an eigenvalue is *at* +1 in some step, and then the gradient u = (I − J)⁻ᵀ v has no
# bound: two equilibria are about to meet and vanish there.
#
# ## Cure it
#
# - **Guard the gradient**: `SAFEGUARDED`, the default of `DEQ`, limits the gain of every sample to
#   ten and takes no gradient through a solve that did not end. The equilibria stay as they are.
# - **Guard the equilibria**: a W of norm below one. Then there is exactly one for every input, it
#   is found in a few steps, and no gain is above 1 / (1 − 0.95).


# %%
class Contraction(Cell):
    def __call__(self, z, context):
        w = self.w.kernel[...]
        bound = jnp.sqrt(jnp.abs(w).sum(0).max() * jnp.abs(w).sum(1).max())  # at least ‖W‖₂
        return jnp.tanh(z @ (w * jnp.minimum(1, 0.95 / bound)) + context)


tasks = {
    "safeguarded (default)": Digits(nn.SAFEGUARDED),
    "contraction, exact": Digits("implicit", Contraction),
}
results = {"exact": run}
for name, task in tasks.items():
    results[name] = training.fit(task, options, name=name)

# %%
figure, panels = plt.subplots(1, 3, figsize=(11, 3.6))
columns = ("forward_steps", "adjoint_gain", "grad_norm")
titles = ("steps of the forward solve", "largest gain |u| / |v|", "norm of the gradient")
for name, marker in zip(results, ("-", "--", "-."), strict=True):
    rows = training.read_metrics(results[name].directory)
    for ax, column in zip(panels, columns, strict=True):
        ax.plot([r["step"] for r in rows], [r[column] for r in rows], marker, lw=1.1, label=name)
for ax, title in zip(panels, titles, strict=True):
    ax.set(title=title, xlabel="training step")
    ax.set_yscale("linear" if ax is panels[0] else "log")
panels[0].legend(fontsize="small")
plt.show()
for name, result in results.items():
    with deqjax.checking_solves("ignore"):  # the line below says how they ended
        logits, stats = result.model(x[:360])
    accuracy = float((logits.argmax(-1) == y[:360]).mean())
    print(f"{name:22} accuracy {accuracy:.3f} on 360 held-out digits, {stats}")

# %% [markdown]
# One seed proves nothing about accuracy; what the cures are worth over ten seeds, and more of them
# (a Jacobian penalty among them), is in [your first DEQ](../docs/first_deq.md). What one seed does
# show is the middle panel against the right one: the default leaves the gains as they are and keeps
# the gradient short, the contraction has no long gains to begin with.
#
# ## A language model
#
# The same with text: the documentation that every Python carries, letter by letter. Two hundred
# steps teach it little; they are enough to look at its solves.

# %%
corpus = load_corpus("python-docs", cache_dir=runs / "cache")
vocabulary = len(corpus.vocabulary)


def new_model(rngs):
    cell = nn.TransformerCell(64, heads=4, d_inner=128, memory_length=32, rngs=rngs)
    return nn.LanguageModel(vocabulary, cell, solver="broyden", rtol=1e-3, rngs=rngs)


cut = lambda ids: Stream(ids, batch_size=16, segment=32, start_id=corpus.vocabulary.start_id)
task = training.LanguageModelling(new_model, cut(corpus.train), cut(corpus.valid[:20_000]))
options = training.TrainOptions(steps=200, batch_size=16, eval_every=100, log_every=5, runs=runs)
language = training.fit(task, options, name="language", hooks=(training.LiveView(),))

# %% [markdown]
# Which solver is right for *this* model, as it is now? All of them on one batch, in one call:

# %%
tokens = jnp.asarray(cut(corpus.valid)[0].inputs)
comparison = diagnostics.compare_solvers(
    language.model,
    tokens,
    solvers=("picard", "anderson", "broyden", deqjax.Anderson(memory=10)),
    rtol=1e-4,
    max_steps=80,
    repeats=3,
)
comparison.figure()
plt.show()
print(comparison)

# %% [markdown]
# ## Exercise
#
# 1. Raise the learning rate of the digits to 5e-2. What do steps, gain and accuracy do with the
#    exact gradient, and what with each cure?
# 2. Draw W larger at the start, `normal(1.0 / width**0.5)`. Does it train? What does the spectrum
#    of step 1 say?
# 3. `diagnostics.landscape(run.model.deq, x[:8])` draws the slowest of eight images. Look at it
#    before and after training.
