"""Speed, measured in pairs: what is compared runs in turn in one process, on the same input."""

from featherface.benchmark.loading import loader_speed, loss_speed
from featherface.benchmark.paired import summary
from featherface.benchmark.versions import versions_speed

__all__ = ["loader_speed", "loss_speed", "summary", "versions_speed"]
