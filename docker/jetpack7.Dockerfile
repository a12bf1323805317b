# memcli on a Jetson Thor with JetPack 7 (L4T 38): Python 3.12, CUDA 13, TensorRT 10.13.
#
#   docker build --file docker/jetpack7.Dockerfile --tag memcli:jetpack7 .
#   docker run --rm --runtime nvidia --volume memcli:/home/memcli/.cache/memcli \
#     --volume "$PWD/videos:/videos" memcli:jetpack7 \
#     score /videos --engine tensorrt --output /videos/scores.csv
#
# Thor runs the vendor's containers for Arm servers; this one brings TensorRT with its Python module.
# Never built or run by this project: it had no Jetson.
FROM nvcr.io/nvidia/tensorrt:25.08-py3

ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/memcli/bin:$PATH

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

# TensorRT's Python module is the image's own, hence --system-site-packages.
COPY . /usr/src/memcli
RUN python3 -m venv --system-site-packages /opt/memcli \
    && /opt/memcli/bin/pip install --no-cache-dir "/usr/src/memcli[gpu]" \
    && useradd --create-home --groups video memcli \
    && mkdir -p /home/memcli/.cache/memcli \
    && chown -R memcli /home/memcli/.cache

USER memcli
WORKDIR /home/memcli
ENTRYPOINT ["memcli"]
CMD ["--help"]
