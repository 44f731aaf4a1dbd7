"""Training batches from decoded photos: the loader's processes draw, the device makes the pixels.

The same crops, faces, colours and mirror images of the same seed as featherface.data.loader; the
pixels differ by the resampling of photos that are kept shrunk, and by one rounding less.
"""

from collections.abc import Iterator, Sequence

import torch

from featherface.config import TrainConfig
from featherface.data.annotations import Photo
from featherface.data.cache import PhotoCache
from featherface.data.loader import EpochSampler, FaceLoader, make_loader
from featherface.structures import Batch


class CachedLoader:
    """Batches whose images are made on the device; their targets are still on the host."""

    def __init__(
        self, plans: FaceLoader, cache: PhotoCache, *, size: int, device: torch.device
    ) -> None:
        self.plans, self.cache, self.size, self.device = plans, cache, size, device

    def __len__(self) -> int:
        return len(self.plans)

    def __iter__(self) -> Iterator[Batch]:
        for plans, targets in self.plans:
            yield Batch(self.cache.render(plans, size=self.size, device=self.device), targets)


def make_batches(
    photos: Sequence[Photo],
    config: TrainConfig,
    device: torch.device,
    cache: PhotoCache | None,
    *,
    shard: tuple[int, int] = (0, 1),
) -> tuple[FaceLoader | CachedLoader, EpochSampler]:
    """`make_loader`, or the same from the cache of these photos. Raises as `make_loader` does."""
    if cache is None:
        return make_loader(photos, config, shard=shard)
    loader, sampler = make_loader(photos, config, files=cache.files, shard=shard)
    return CachedLoader(loader, cache, size=config.image_size, device=device), sampler
