# A machine that serves: the package, with its kernels and what EXTRAS names. compose.yaml runs it; docs/cluster builds it
# with Ray. LONGLIVE_CUDA=OFF leaves out the kernels for Hopper, and with them the compiler: for all other GPUs, and CPUs.
ARG LONGLIVE_CUDA=ON
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS compiler-ON
FROM ubuntu:24.04 AS compiler-OFF

FROM compiler-${LONGLIVE_CUDA} AS build
ARG EXTRAS=serve,triton
ARG LONGLIVE_CUDA
ARG TORCH=torch==2.13.0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/longlive \
    && /opt/longlive/bin/pip install --no-cache-dir "$TORCH" numpy \
    && /opt/longlive/bin/pip install --no-cache-dir "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.26" ninja
WORKDIR /src
COPY . .
RUN PATH=/opt/longlive/bin:$PATH LONGLIVE_CUDA=$LONGLIVE_CUDA \
    pip install --no-cache-dir --no-build-isolation ".[$EXTRAS]"

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# Triton compiles a few lines of C when it starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 gcc libc6-dev python3-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 longlive \
    && install --directory --owner=longlive /home/longlive/.cache /home/longlive/.triton
COPY --from=build /opt/longlive /opt/longlive
ENV PATH=/opt/longlive/bin:$PATH
USER longlive
WORKDIR /home/longlive
EXPOSE 8000
CMD ["longlive-optimized", "serve"]
