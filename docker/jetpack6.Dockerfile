# memcli on a Jetson Orin with JetPack 6 (L4T 36.4): Python 3.10, CUDA 12.6, TensorRT 10.3.
#
#   docker build --file docker/jetpack6.Dockerfile --tag memcli:jetpack6 .
#   docker run --rm --runtime nvidia --volume memcli:/home/memcli/.cache/memcli \
#     --volume "$PWD/videos:/videos" memcli:jetpack6 \
#     score /videos --engine tensorrt --output /videos/scores.csv
#
# Never built or run by this project: it had no Jetson.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/memcli/bin:$PATH

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*

# TensorRT's Python module is JetPack's own, hence --system-site-packages. `cpu` has the runtimes
# that verify: onnxruntime-gpu has no wheel for Python 3.10 on aarch64.
COPY . /usr/src/memcli
RUN python3 -m venv --system-site-packages /opt/memcli \
    && /opt/memcli/bin/pip install --no-cache-dir --upgrade pip \
    && /opt/memcli/bin/pip install --no-cache-dir "/usr/src/memcli[cpu]" "cuda-python>=12.6,<13" \
    && useradd --create-home --groups video memcli \
    && mkdir -p /home/memcli/.cache/memcli \
    && chown -R memcli /home/memcli/.cache

USER memcli
WORKDIR /home/memcli
ENTRYPOINT ["memcli"]
CMD ["--help"]
