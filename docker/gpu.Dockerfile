# handdata for GPU nodes: SAM masks and training. Build it in the repository's root:
#   docker build -f docker/gpu.Dockerfile -t handdata:gpu .
# CUDA 13 comes with PyTorch's wheels; the host needs NVIDIA's driver (580 or newer) and its container toolkit.
FROM python:3.11.13-slim-bookworm

# OpenCV and MediaPipe load GL; KubeRay's probes call wget; torch.compile calls a C compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc=4:12.2.* libc6-dev=2.36-* libegl1=1.6.* libgl1=1.6.* libgles2=1.6.* libglib2.0-0=2.74.* wget=1.21.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

# The large part first: it changes only with its versions.
RUN pip install --no-cache-dir torch==2.14.1 torchvision==0.29.1

COPY . /opt/handdata
WORKDIR /opt/handdata
ENV HANDDATA_WEIGHTS=/opt/handdata/weights
RUN pip install --no-cache-dir --constraint constraints.txt '.[all]' \
    && sh docker/hand_model.sh python "$HANDDATA_WEIGHTS"

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/ray
CMD ["handdata", "--help"]
