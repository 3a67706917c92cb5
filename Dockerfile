# The harness, its libraries and the embedded model. See docs/install.md.
#   docker build --tag harness .
#   docker run --gpus all --volume "$PWD/results:/harness/results" harness sweep quickstart
FROM python:3.11-slim-bookworm

# Triton and torch.compile build kernels while they run, and need a compiler. Versions are Debian's of the day.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

# Where pip looks for packages besides its own index: a build of torch for the CPU, say.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1

WORKDIR /harness
COPY . .
RUN make setup

ENV PATH="/harness/.venv/bin:$PATH"
ENTRYPOINT ["harness"]
CMD ["--help"]
