# handdata for CPU nodes: ingest, annotation without SAM, a cluster's head. Build it in the repository's root:
#   docker build -f docker/cpu.Dockerfile -t handdata:cpu .
FROM python:3.11.13-slim-bookworm

# OpenCV and MediaPipe load GL; KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        libegl1=1.6.* libgl1=1.6.* libgles2=1.6.* libglib2.0-0=2.74.* wget=1.21.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

# The large part first: it changes only with its versions.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch==2.14.1 torchvision==0.29.1

COPY . /opt/handdata
WORKDIR /opt/handdata
ENV HANDDATA_WEIGHTS=/opt/handdata/weights
RUN pip install --no-cache-dir --constraint constraints.txt '.[all]' \
    && sh docker/hand_model.sh python "$HANDDATA_WEIGHTS"

USER 1000:1000
WORKDIR /home/ray
CMD ["handdata", "--help"]
