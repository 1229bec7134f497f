# One virtual environment, .venv, made on first use and remade when it no longer fits.
#
#   make train ARGS="--help"          flags for the experiment
#   make test PYTHON=python3.12       another interpreter (remakes .venv)
#   make test PYTEST_ARGS="-k broyden -x"
#   make train EXTRAS=cuda12          an accelerator: cuda12, cuda13 or tpu
#   make test UV=                     do without uv

PYTHON ?=
UV ?= uv
EXTRAS ?=
ARGS ?=
PYTEST_ARGS ?= -n 2 --dist worksteal

comma := ,
RUN_EXTRAS := experiments$(if $(EXTRAS),$(comma)$(EXTRAS))

.DEFAULT_GOAL := help
.PHONY: help train test test-all lint types format docs constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1:  \2/p' Makefile

train: ## train the language model (by default a run of about 2 minutes on a CPU)
	@$(call venv,$(RUN_EXTRAS)) -m experiments.language_model $(ARGS)

test test-all: export JAX_PLATFORMS = cpu
test: ## run the tests, without the slow ones
	@$(call venv,$(RUN_EXTRAS),dev) -m pytest $(PYTEST_ARGS)

test-all: ## run every test
	@$(call venv,$(RUN_EXTRAS),dev) -m pytest -m "" $(PYTEST_ARGS)

lint: ## check style and formatting
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff check .
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff format --check .

types: ## check types
	@$(call venv,$(RUN_EXTRAS),dev) -m pyright

format: ## mend style and formatting in place
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff check --fix-only .
	@$(call venv,$(RUN_EXTRAS),dev) -m ruff format .

docs: export NO_MKDOCS_2_WARNING = 1
docs: ## build the documentation into site/
	@$(call venv,$(RUN_EXTRAS),docs) -m mkdocs build --strict

constraints: ## pin the newest versions that work together (needs uv)
	@"$(or $(UV),uv)" --version >/dev/null 2>&1 || { \
	  echo "make constraints needs uv: pip install uv" >&2; exit 1; }
	@{ echo "# Written by 'make constraints': the versions that are tested together."; \
	  "$(or $(UV),uv)" pip compile --quiet --universal --upgrade --python-version 3.11 \
	    --fork-strategy requires-python --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links \
	    --extra experiments --extra docs --extra dev pyproject.toml; \
	} > constraints.txt.new || { rm -f constraints.txt.new; exit 1; }
	@mv constraints.txt.new constraints.txt

clean: ## remove caches and built files (keeps .venv and runs/)
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . \( -name .venv -o -name .git -o -name runs \) -prune \
	  -o \( -name __pycache__ -o -name '*.egg-info' \) -type d -exec rm -rf {} +

# $(call venv,EXTRA[,EXTRA]) runs .venv's Python with those extras installed; the words that follow
# are its arguments. The shell only finds an interpreter; the program IN_VENV does the rest.
PYTHONS := $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11)
TOO_OLD := $(if $(PYTHON),PYTHON=$(PYTHON) does not start a Python 3.11 or newer.,deqjax needs \
  Python 3.11 or newer and found none on PATH; name one: make PYTHON=/path/to/python3)
venv = for python in $(PYTHONS) ''; do \
	  if [ -z "$$python" ]; then echo "$(TOO_OLD)" >&2; exit 1; fi; \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then break; fi; \
	done; exec "$$python" -c "$$IN_VENV" "$(UV)" "$(1)$(if $(2),$(comma)$(2))"

define IN_VENV
import fcntl, hashlib, json, os, shlex, shutil, signal, subprocess, sys, tomllib
from importlib.util import find_spec
from pathlib import Path

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
uv, extras, command = sys.argv[1], sys.argv[2], sys.argv[3:]
os.environ.pop("IN_VENV", None)
venv = Path(".venv")
python = str(venv / "bin" / "python")
owner = venv / ".made-for"  # the interpreter and the folder that .venv was made for
installing = venv / ".installing"  # there during an install, and after one that was cut off
stamp = ".installed-"  # + extras: a finished install; it holds the digest of what it was made from

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
made_for = json.dumps([sys.version, sys.base_prefix, os.getcwd()])
asked = json.dumps([project["project"], project["build-system"], project["tool"]["hatch"]])
pins = Path("constraints.txt").read_text("utf-8")


def digest(extras):
    return hashlib.sha256((made_for + extras + asked + pins).encode()).hexdigest()


def text(path):
    return path.read_text("utf-8") if path.exists() else None


def sound():
    return text(owner) == made_for and os.access(python, os.X_OK) and not installing.exists()


def ready():
    """.venv is sound, and one finished install held these extras, perhaps among others."""
    done = {path.name.removeprefix(stamp): text(path) for path in venv.glob(stamp + "*")}
    return sound() and any(
        set(extras.split(",")) <= set(had.split(",")) and found == digest(had)
        for had, found in done.items()
    )


def lock(kind):
    """Wait for a lock that the kernel drops when its holder ends, however it ends."""
    try:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another make that uses .venv", file=sys.stderr, flush=True)
            fcntl.flock(fd, kind)
    except OSError:
        pass  # a file system without locks: nothing to wait for


def run(*words):
    return subprocess.run(words, stdin=subprocess.DEVNULL).returncode == 0


def fresh(kind):
    shutil.rmtree(venv, ignore_errors=True)
    if venv.is_symlink() or venv.exists():
        sys.exit(".venv cannot be removed; remove it by hand, then run make again.")
    if kind == "uv":
        made = run(uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(venv))
    elif find_spec("venv") and find_spec("ensurepip"):
        made = run(sys.executable, "-m", "venv", str(venv))
    elif find_spec("venv") and find_spec("pip"):
        # Debian without python3-venv: its pip can fill a virtual environment that has none.
        made = run(sys.executable, "-m", "venv", "--without-pip", str(venv)) and run(
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "pip"
        )
    else:
        sys.exit(
            f"{sys.executable} cannot make virtual environments: install its venv module "
            "(Debian, Ubuntu: apt install python3-venv) or uv, then run make again."
        )
    if made:
        installing.touch()
        owner.write_text(made_for, "utf-8")
    return made


def install(kind):
    if not sound() and not fresh(kind):
        return False
    installing.touch()
    print(f"installing deqjax[{extras}] into .venv with {kind}", file=sys.stderr, flush=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    start = [uv, "pip", "install", "--python", python] if kind == "uv" else [*pip, "install"]
    if not run(*start, "--quiet", "-c", "constraints.txt", "-e", f".[{extras}]"):
        return False
    (venv / (stamp + extras)).write_text(digest(extras), "utf-8")
    installing.unlink()
    return True


def has_uv():
    try:
        return bool(uv) and not subprocess.run([uv, "--version"], capture_output=True).returncode
    except OSError:
        return False


fd = os.open(".venv.lock", os.O_RDWR | os.O_CREAT, 0o644)
os.set_inheritable(fd, True)  # the command keeps the lock, so .venv is not remade under it
lock(fcntl.LOCK_SH)
while not ready():
    lock(fcntl.LOCK_UN)
    lock(fcntl.LOCK_EX)
    if not ready():
        # uv and pip can be set up for different indexes: what one cannot reach, the other may.
        if not (has_uv() and install("uv")) and not install("pip"):
            sys.exit("the install failed (see above); the next make starts .venv afresh.")
    lock(fcntl.LOCK_SH)
print(shlex.join([python, *command]), flush=True)
os.execv(python, [python, *command])
endef
export IN_VENV
