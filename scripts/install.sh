#!/usr/bin/env bash
# Makes .venv and installs what `make demo`, `make app`, `make test` or `make docs` needs:   bash scripts/install.sh demo|serve|test|docs
# PYTHON: the interpreter to start from. TORCH: what to hand to pip for torch. Both are explained in the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:?"usage: install.sh demo|serve|test|docs"}
base_python=${PYTHON:-python3}
python=.venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1

torch_version() { "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }
say() { printf 'install: %s\n' "$*"; }
# Names what is fetched, and what is large, as it goes: a quiet pip is silent for minutes
install() {
    PYTHONUNBUFFERED=1 "$python" -m pip install --progress-bar off "$@" |
        sed -n -e 's/^ *\(Collecting [^ ]*\).*/  \1/p' -e 's/^ *\(Downloading [^ ]* ([0-9.]* [MG]B)\).*/    \1/p' \
            -e 's/^\(Building wheels\).*/  \1/p' -e 's/^\(Installing collected packages\).*/  \1, which takes a while/p'
}

# Debian's python3 makes environments without pip unless its package python3-venv is there; then the pip outside fills in
make_environment() {
    "$base_python" -m venv .venv >/dev/null 2>&1 && return
    "$base_python" -m venv --clear --without-pip .venv
    "$base_python" -m pip --python "$python" install -qq pip
}

# Without a GPU any build will do, so it is the release that was tested. From pip's default index it brings CUDA's
# libraries on x86-64, too. Where pip is configured with an index of builds for CPUs, it prefers these: their +cpu counts
# as newer than the same version without
default_torch() {
    if [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then echo 'torch>=2.11'; else echo 'torch==2.13.0'; fi
}

if ! "$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$base_python is missing or older than Python 3.11; name another one, for instance: make $purpose PYTHON=python3.12"
    exit 1
fi
if ! "$python" -m pip --version >/dev/null 2>&1; then
    say "making .venv with $("$base_python" -V)"
    make_environment
fi

if [ -n "${TORCH:-}" ] || ! torch_version >/dev/null; then
    torch=${TORCH:-$(default_torch)}
    say "$torch"
    # shellcheck disable=SC2086  # TORCH may hold several words
    install $torch
fi

# What is there stays: no dependency may pull another build of torch over the one just chosen
constraints=.venv/constraints.txt
echo "torch==$(torch_version)" >"$constraints"
case $purpose in
demo | serve | docs) extras=$purpose ;;
test)
    extras=demo,dev,train,eval,serve,bulk,ray
    [ "$(uname -s)" != Linux ] || extras=$extras,deepspeed
    ;;
*) say "unknown purpose $purpose: demo, serve, test or docs" && exit 1 ;;
esac
say "the package with its extras: $extras"
install --constraint "$constraints" --editable ".[$extras]"

if [ "$purpose" = test ]; then
    # The original tracker, for the parity tests. It asks for torchvision, and the builds of torchvision on the package
    # index break transformers beside a CPU build of torch. None of the modules we compare with imports it.
    say "sam2, without torchvision"
    install --constraint "$constraints" "setuptools>=70.1" hydra-core iopath
    SAM2_BUILD_CUDA=0 install --no-deps --no-build-isolation "sam2>=1.1.0"
fi

"$python" - <<'PYTHON'
import importlib.util
import sys

import torch

if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        sys.exit(
            f"install: torchvision in .venv was built for another torch than {torch.__version__} ({error}). transformers "
            "cannot be imported beside it and SAMA does not need it: run .venv/bin/python -m pip uninstall torchvision"
        )
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
print(f"install: ready, torch {torch.__version__} on {device}")
PYTHON

touch ".venv/.installed-$purpose"
if [ "$purpose" = test ]; then touch .venv/.installed-demo .venv/.installed-serve; fi
