# shellcheck shell=bash disable=SC2034
# What the scripts beside this file need to know. Copy it, fill the copy in, and give it to each of them.

PROJECT=                        # gcloud projects list
ZONE=us-west4-a                 # where there is quota: gcloud compute tpus accelerator-types list --zone=ZONE
NAME=zeroprompt                 # of the queued resource and of its TPU
ACCELERATOR=v5litepod-64        # v4-64, v5p-128, v6e-64, ...
RUNTIME=v2-alpha-tpuv5-lite     # of v5p v2-alpha-tpuv5, of v6e v2-alpha-tpuv6e, of v4 tpu-ubuntu2204-base
SPOT=yes                        # no: on demand
BUCKET=                         # of yours, with a hierarchical namespace; every worker sees it as /mnt/zeroprompt

# What every worker runs, in this checkout. MODEL_DIR must be where all of them see it.
COMMAND="zeroprompt train --gin_file=experiments/quickstart.gin --gin.MODEL_DIR=/mnt/zeroprompt/quickstart"

LOGS=runs/logs                  # here, not there: one file for each worker
POLL=60                         # seconds between two looks
