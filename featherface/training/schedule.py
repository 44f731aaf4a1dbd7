"""What changes over a run: the learning rate and DropBlock's probability."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from featherface.config import TrainConfig


def warmup_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of linear warm-up: `warmup_epochs`, but at most a tenth of the run."""
    total = config.epochs * steps_per_epoch
    return min(round(config.warmup_epochs * steps_per_epoch), total // 10)


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Linear warm-up, then a cosine down to `min_lr`; stepped after every optimizer step."""
    total, warm = config.epochs * steps_per_epoch, warmup_steps(config, steps_per_epoch)
    cosine = CosineAnnealingLR(optimizer, max(1, total - warm), eta_min=config.min_lr)
    if warm == 0:
        return cosine
    linear = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return SequentialLR(optimizer, [linear, cosine], milestones=[warm])


def dropblock_probability(config: TrainConfig, progress: float) -> float:
    """Linear from 0 at the start to `dropblock_prob` at the end; progress 0..1 of the run."""
    return config.dropblock_prob * progress
