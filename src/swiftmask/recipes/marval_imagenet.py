"""marval-imagenet: MARVAL with the paper's length and batch, for the released MAR-B, MAR-L and MAR-H."""

from swiftmask.data.sources import DataConfig
from swiftmask.methods.marval.training import MarvalConfig
from swiftmask.recipes.marval import MarvalRecipe
from swiftmask.training.setup import TrainingConfig


def recipe() -> MarvalRecipe:
    """`swiftmask train marval-imagenet model=mar_base/checkpoint-last.pth codec=kl16.ckpt
    data=/data/imagenet/train`, with `torchrun --nproc_per_node=N -m` in front for several GPUs.

    Run at toy size only, in one process and in two: 30 epochs as in the paper, with the rates of its
    relatives (SiD, SIM) for what it does not say. The auxiliary network's updates count as steps, too. A
    step's 1024 images are computed in shares of 64 (16 shares in one process; on 8, set
    training.accumulate=2). Without activations MAR-B, L and H take 9.4, 21.3 and 41.7 GB, and 5.5, 12.2 and
    23.8 GB with training.sharded=True on 8 (`training_bytes`).
    """
    training = TrainingConfig(
        num_steps=75_000,
        batch_size=1024,
        accumulate=16,
        learning_rate=1e-5,
        betas=(0.0, 0.999),
        weight_decay=0.0,
        warmup_steps=500,
        ema_decay=0.9995,
        precision="bf16",
        save_every=1000,
    )
    return MarvalRecipe(
        name="marval-imagenet",
        marval=MarvalConfig(guidance=1.2),
        training=training,
        source=DataConfig(mirror=True),
    )
