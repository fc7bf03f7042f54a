"""What only a GPU can show, in a few minutes of a bare, offline one.

    python -m benchmarks.gpu.pack FOLDER --data DIR     data and missing wheels, at most 60 MiB
    python -m benchmarks.gpu correct                    every verb, CPU against CUDA
    python -m benchmarks.gpu probe                      a training step, by the way it is launched
    python -m benchmarks.gpu prune                      the study that docs/reproduction.md declares
    python -m benchmarks.gpu merge RESULTS...           its table

Each runs without a GPU, too, at a toy size (`--toy`): nothing is tried for the first time there.
The machine has Python 3.12 with torch, and no network; the tree and the folder are all it gets.
With the folder packed into `.carry` and `$OUT` the folder whose files come back (at most 8), two
calls:

A, about 4 minutes: how fast is a step, does the study run, is everything right. One line:

    export PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/site:$PWD/src HF_HUB_OFFLINE=1 MPLBACKEND=Agg;
    nvidia-smi -L; python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir
    --upgrade --target /tmp/site .carry/wheels/*.whl;
    timeout -k 5 75 python3 -m benchmarks.gpu probe --seconds 62 --out $OUT/probe.json 2>&1
    | tee $OUT/probe.log;
    timeout -k 5 60 python3 -m benchmarks.gpu prune --data .carry/cifar10 --smoke --parts 1,2
    --seconds 52 --work /tmp/smoke --out $OUT 2>&1 | tee $OUT/smoke.log;
    timeout -k 5 95 python3 -m benchmarks.gpu correct --carry .carry --seconds 88
    --out $OUT/correct.json 2>&1 | tee $OUT/correct.log

B, about 10 minutes: a part of the study (the first took 558 s on an H200). One line:

    export PYTHONUNBUFFERED=1 PYTHONPATH=/tmp/site:$PWD/src HF_HUB_OFFLINE=1 MPLBACKEND=Agg;
    nvidia-smi -L; python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir
    --upgrade --target /tmp/site .carry/wheels/*.whl;
    timeout -k 10 590 python3 -m benchmarks.gpu prune --data .carry/cifar10 --parts 2
    --seconds 575 --work /tmp/study --out $OUT 2>&1 | tee $OUT/prune.log

The first gives about 230 seconds to its three parts at most, the second 590; each part has a limit
of its own, and what it has found by then is written.
"""
