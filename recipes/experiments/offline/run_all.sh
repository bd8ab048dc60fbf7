#!/bin/sh
# Tables I and II and Figures 2a and 2b without a Hub, for both foundations: about two hours on two
# cores that do nothing else, minutes on an accelerator. Goes on where it was stopped.
#
#   sh recipes/experiments/offline/run_all.sh [options of run_experiments.py, such as --only table1]
set -e
cd "$(dirname "$0")/../../.."
python recipes/experiments/offline/build.py
for foundation in lite0 resnet50; do
    python recipes/experiments/run_experiments.py "recipes/experiments/offline/experiments-$foundation.yaml" "$@"
done
