# An image that runs wsflow on CPUs and on NVIDIA GPUs.  docs/cluster.md says how to build, run and check it.
#   docker build --tag wsflow .
#   docker run --rm --gpus all --shm-size 2g --volume wsflow-runs:/wsflow/runs wsflow fit -c configs/breast_cancer.yaml

# constraints.txt is for Python 3.11; a digest in place of the tag pins the base byte by byte.
ARG BASE=python:3.11.14-slim-bookworm


FROM ${BASE} AS python

ENV PATH=/opt/venv/bin:${PATH} \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv


# The requirements as files of their own: other lines of pyproject.toml may change and nothing is installed again.
FROM python AS requirements

# Extras of wsflow to have in the image, such as "import onnx".
ARG EXTRAS=""
WORKDIR /build
COPY pyproject.toml docker/requirements.py ./
# hadolint ignore=SC2086
RUN python requirements.py run ${EXTRAS} > run.txt \
    && python requirements.py build > build.txt


# The wheel.  The same source gives the same bytes, so that this stage may run again and the last one need not.
FROM python AS wheel

ENV SOURCE_DATE_EPOCH=315532800
WORKDIR /build
COPY constraints.txt ./
COPY --from=requirements /build/build.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --requirement build.txt --constraint constraints.txt
COPY pyproject.toml LICENSE README.md ./
COPY wsflow ./wsflow
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .


FROM python AS image

# Gigabytes, CUDA's libraries among them, in one layer that a change of the source leaves alone.
COPY constraints.txt /opt/wsflow/
COPY --from=requirements /build/run.txt /opt/wsflow/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --requirement /opt/wsflow/run.txt --constraint /opt/wsflow/constraints.txt

ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid "${GID}" wsflow \
    && useradd --non-unique --no-log-init --create-home --uid "${UID}" --gid "${GID}" wsflow \
    && install --directory --owner wsflow --group wsflow /wsflow /wsflow/data /wsflow/zoos /wsflow/runs

COPY --from=wheel /dist /opt/wsflow/dist
RUN pip install --no-deps --no-index /opt/wsflow/dist/*.whl
COPY configs /wsflow/configs
# A repository that was cloned under a strict umask has files that its owner alone can read.
RUN chmod -R a+rX /wsflow/configs

# One thread a process unless the caller knows better: libraries count the host's cores, not those that are lent.
# NVIDIA_VISIBLE_DEVICES is left to the runtime: set here, it would show a container GPUs that it was not given.
# Huge pages where the host lends them on request: a few percent of a training step on the CPU.
# Caches of compiled kernels and of fonts go where any user may write, since the image runs under any user id.
ENV WSFLOW_DATA=/wsflow/data \
    OMP_NUM_THREADS=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    USER=wsflow \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton

VOLUME ["/wsflow/data", "/wsflow/zoos", "/wsflow/runs"]

# Last, so that another revision costs no layer with files in it.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="wsflow" \
      org.opencontainers.image.description="Flow matching in weight space: samples are trained neural networks" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# No HEALTHCHECK: this is a job, not a service; it ends, and its exit status says how it went.
USER ${UID}:${GID}
WORKDIR /wsflow
ENTRYPOINT ["wsflow"]
CMD ["--help"]
