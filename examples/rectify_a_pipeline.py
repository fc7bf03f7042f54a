"""Few steps for a pipeline of diffusers: a small one is trained on digits, saved, and rectified.

python examples/rectify_a_pipeline.py [UPDATES]        (pip install "rectified[diffusers]")
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel

from rectified import flow
from rectified.data import load_images
from rectified.flow import Draws, FlowMatching, PairStore, pipelines
from rectified.training import FitConfig, fit

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 30
folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
config = FitConfig(1, "adamw", 2e-3, schedule="cosine", clip=1.0, ema=0.99)

# a diffusion model that you already have
down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
unet = UNet2DModel(8, 1, 1, down_block_types=down, up_block_types=up, layers_per_block=1,
                   block_out_channels=(32, 64), norm_num_groups=8)  # fmt: skip
pipeline = DDIMPipeline(unet, DDIMScheduler(prediction_type="v_prediction"))
teacher, schedule = pipelines.pipeline_field(pipeline)
digits = load_images("digits").train.pixels.float() / 8 - 1
objective = FlowMatching(path=teacher.path, predicts=teacher.predicts)
fit(teacher.network, objective, Draws((digits,), size=64, updates=updates), config)

# its own pairs of noise and samples, and a student trained on them
store, budget = PairStore(folder / "pairs", count=10 * updates), pipelines.Budget(256, print)
pipelines.make_pipeline_pairs(teacher, schedule, store, (1, 8, 8), budget)
student = pipelines.make_student(teacher, schedule)
batches = pipelines.PipelineBatches(store, size=64, updates=updates)
fit(student.network, pipelines.InPieces(pipelines.rectification(schedule), budget), batches, config)
pipelines.save_pipeline(pipeline, pipelines.trained_unet(student), schedule, folder / "student")
saved = DiffusionPipeline.from_pretrained(folder / "student")  # plain diffusers from here on

noise = flow.noise_like((200, 1, 8, 8), 10**9)
wanted = pipelines.solve(teacher, schedule, noise)
for name, field in ("teacher", teacher), ("student", pipelines.pipeline_field(saved)[0]):
    few = {n: flow.generate(field, noise, steps=n)[0] for n in (1, 2, 4)}
    apart = {n: (x - wanted).square().mean() / wanted.square().mean() for n, x in few.items()}
    gap = flow.first_order_gap(field, noise, steps=20)
    print(f"{name}: first-order gap {gap:.3f}; distance", {n: f"{d:.3f}" for n, d in apart.items()})
