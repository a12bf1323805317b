# memcli on x86-64 with an NVIDIA GPU (driver 580 or newer, for CUDA 13).
#
#   docker build --file docker/cuda.Dockerfile --tag memcli:cuda .
#   docker run --rm --gpus all --volume memcli:/home/memcli/.cache/memcli \
#     --volume "$PWD/videos:/videos" memcli:cuda score /videos --output /videos/scores.csv
#
# Never built or run by this project: it had no machine with a GPU and a container engine.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

# `video` is for NVDEC: without it PyNvVideoCodec does not load.
ENV DEBIAN_FRONTEND=noninteractive \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PATH=/opt/memcli/bin:$PATH

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

COPY . /usr/src/memcli
RUN python3 -m venv /opt/memcli \
    && /opt/memcli/bin/pip install --no-cache-dir "/usr/src/memcli[gpu,tensorrt-rtx,parquet]" \
    && useradd --create-home memcli \
    && mkdir -p /home/memcli/.cache/memcli \
    && chown -R memcli /home/memcli/.cache

USER memcli
WORKDIR /home/memcli
ENTRYPOINT ["memcli"]
CMD ["--help"]
