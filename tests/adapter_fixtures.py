"""One small dataset for each registered adapter, written in the source's official layout.

A new adapter needs an entry here: the contract test runs on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fixtures_arctic import write_arctic
from fixtures_assemblyhands import write_assemblyhands
from fixtures_dart import write_dart
from fixtures_dexycb import write_dexycb
from fixtures_ego4d import write_ego4d
from fixtures_foundhand10m import write_foundhand10m
from fixtures_hagrid import write_hagrid_v1, write_hagrid_v2
from fixtures_hoi4d import write_hoi4d
from fixtures_interhand26m import write_interhand26m
from fixtures_reinterhand import write_reinterhand
from fixtures_renderih import write_renderih
from fixtures_rhd import write_rhd
from fixtures_visor import write_visor
from fixtures_wlasl import write_wlasl

from handdata.adapters.synthesis.dataset import write_dataset


@dataclass(frozen=True)
class AdapterFixture:
    """How to write a dataset, and how many records and rejections it holds.

    Args:
        source: the adapter's name.
        write: writes the dataset into a folder.
        records: number of records in it.
        rejections: number of frames in it that must be refused.
        variant: tells several layouts of one source apart.

    """

    source: str
    write: Callable[[Path], object]
    records: int
    rejections: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.source}-{self.variant}" if self.variant else self.source


def _write_synthetic(root: Path) -> None:
    write_dataset(root, identities=3, sequences=3, frames=2, cameras=2, size=48, seed=5, processes=1)


ADAPTER_FIXTURES = [
    AdapterFixture("arctic", write_arctic, records=23, rejections=1),
    AdapterFixture("assemblyhands", write_assemblyhands, records=32, rejections=1),
    AdapterFixture("dart", write_dart, records=4, rejections=1),
    AdapterFixture("dexycb", write_dexycb, records=39, rejections=1),
    AdapterFixture("ego4d", write_ego4d, records=8, rejections=1),
    AdapterFixture("foundhand10m", write_foundhand10m, records=10, rejections=1),
    AdapterFixture("hagrid", write_hagrid_v1, records=4, rejections=1, variant="v1"),
    AdapterFixture("hagrid", write_hagrid_v2, records=6, variant="v2"),
    AdapterFixture("hoi4d", write_hoi4d, records=12, rejections=1),
    AdapterFixture("interhand26m", write_interhand26m, records=20, rejections=1),
    AdapterFixture("reinterhand", write_reinterhand, records=39, rejections=1),
    AdapterFixture("renderih", write_renderih, records=4, rejections=2),
    AdapterFixture("rhd", write_rhd, records=5, rejections=1),
    AdapterFixture("synthetic", _write_synthetic, records=12),
    AdapterFixture("visor", write_visor, records=6, rejections=1),
    AdapterFixture("wlasl", write_wlasl, records=12, rejections=2),
]
