# An image of the server, run by a user without rights, with the small model in it:
#
#   docker build -t sama .                                             for NVIDIA GPUs, and CPUs where size is no matter
#   docker build -t sama:cpu --build-arg TORCH_INDEX=ADDRESS .         for CPUs: the index of such builds of PyTorch
#   docker run --rm -p 127.0.0.1:8000:8000 -e SAMA_API_KEY sama        with --gpus all where there are GPUs
#
# docs/deployment.md has the rest.

ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/app/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# ---- the package, as a wheel

FROM base AS wheel
WORKDIR /build
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# ---- PyTorch, a layer of its own since it is large and changes rarely

# On x86-64 the builds of the default index bring the libraries of CUDA; the driver comes from the machine, by NVIDIA's
# container toolkit
FROM base AS packages
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN python -m venv /app && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"

# ---- the package and what it needs

ARG EXTRAS=serve,heif
COPY --from=wheel /wheels /wheels
# torch is held: no dependency may pull another build over the one just chosen
RUN python -c "from importlib.metadata import version; print('torch==' + version('torch'))" >/wheels/constraints.txt \
    && set -- /wheels/sama-*.whl \
    && pip install --no-cache-dir --constraint /wheels/constraints.txt "$1[$EXTRAS]"

# ---- what runs

FROM base
# 1000 is also the user of Hugging Face Spaces. Uploaded files and models of the Hub are in its home: mount a volume
# there to keep them
RUN useradd --uid 1000 --create-home --home-dir /srv/sama --shell /usr/sbin/nologin sama
COPY --from=packages /app /app
ENV HF_HOME=/srv/sama/huggingface
WORKDIR /srv/sama
USER 1000
EXPOSE 8000
# Loading a model takes up to minutes. With --allow-host, allow 127.0.0.1, too, which is the name used here
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Without the variable SAMA_API_KEY it ends with one sentence: an address that others reach needs a key
ENTRYPOINT ["sama", "serve", "--host", "0.0.0.0", "--port", "8000", "--folder", "/srv/sama/files"]
CMD []
