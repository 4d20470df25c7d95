"""Damage of every kind to the datasets of all sources, through the real ingest.

Allowed are the right records, rejected rows and an error in one line. A traceback, a hang, a record that is lost or
changed without a word, or a new one, is not. ``tests.fixtures.damage`` makes the damage, ``outcomes`` judges.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from handdata.adapters.reading import listing
from handdata.adapters.registry import registered_adapters
from tests.fixtures.damage import Case, cases_of, misnamed, rights_of
from tests.fixtures.other_user import OtherUser
from tests.fixtures.outcomes import Outcome, outcome_of, problems_of
from tests.fixtures.sources import ADAPTER_FIXTURES, AdapterFixture

SEED: Final = int(os.environ.get("HANDDATA_FUZZ_SEED", "1"))
CASES_IN_SOAK: Final = int(os.environ.get("HANDDATA_FUZZ_CASES", "150"))
"""Of each fixture."""
CASES_IN_TEST: Final = 2

KNOWN: Final = (
    (r"hoi4d .*handpose", "arrays of another shape label no hand (issue 19 of HOI4D-Instructions)"),
    (r"hoi4d .*image\.mp4", "masks and trajectories are compared with the frames of a video that has some"),
    (r"foundhand10m .*(joint3d|joint_valid)\]: (delete|rename key)", "files of the release lack them"),
    (r"foundhand10m .*hand_mask", "its size is that of the image before it was resized, on each axis"),
    (r"folder .*to be turned, says EXIF", "photographs of one's own are turned as EXIF says"),
    (r"coco .*iscrowd", "a crowd labels no hand, whatever stands in its keypoints"),
    (r"coco .*annotations/\*.*: delete", "the hands of another person are then the largest ones"),
    (r"coco .*hand_valid", "a hand that is not valid is not labelled, whatever stands in its keypoints"),
    (r"hagrid.* .*landmarks.*: a null for one", "a hand that MediaPipe missed has no landmarks"),
)
"""What looks like a loss in silence, and is what a source's files are documented to mean."""


class Dataset:
    """A dataset on disk, and copies of it to damage."""

    def __init__(self, fixture: AdapterFixture, folder: Path) -> None:
        self.fixture = fixture
        self.adapter = registered_adapters()[fixture.source]
        self._original = folder / "original" / fixture.name
        self._case = folder / "case"
        fixture.write(self._original)
        self.pristine = outcome_of(self.adapter, self._copy(), self._case / "workspace")
        assert (len(self.pristine.records), self.pristine.broken) == (fixture.records, "")

    def _copy(self) -> Path:
        subprocess.run(["chmod", "-R", "-f", "u+rwX", self._case], check=False)
        shutil.rmtree(self._case, ignore_errors=True)
        root = self._case / "holder" / "dataset"
        shutil.copytree(self._original, root, copy_function=os.link)
        for folder in (self._case, self._case / "holder"):
            folder.chmod(0o777)  # the other user of the cases of rights has a workspace here
        return root

    def cases(self, most: int) -> list[Case]:
        return cases_of(self._original, SEED, most)

    def rights(self) -> list[Case]:
        return rights_of(self._original, SEED)

    def misnamed(self) -> list[Case]:
        return list(misnamed(self._original))

    def outcome_of(self, case: Case) -> Outcome:
        """Return what comes of a damaged copy."""
        root = self._copy()
        return outcome_of(self.adapter, case.apply(root) or root, self._case / "workspace")

    def try_case(self, case: Case, other_user: OtherUser | None = None) -> tuple[Outcome, list[str]]:
        """Return what comes of a damaged copy, and what is wrong about it; cases of rights need another user."""
        root = self._copy()
        given = case.apply(root) or root
        ingest_of = other_user.outcome_of if case.of_other_user and other_user else outcome_of
        found = ingest_of(self.adapter, given, self._case / "workspace")
        problems = problems_of(case, self.pristine, found, lambda: self._probed(case))
        named = f"{self.fixture.name} {case.kind}: {case.what}"
        known = any(re.search(pattern, named) for pattern, _ in KNOWN)
        return found, [
            f"{named} ({case.expect}): {problem}" for problem in problems if not (known and _is_known(problem))
        ]

    def _probed(self, case: Case) -> Outcome:
        if case.probe is None:
            return Outcome(error="nothing to find out")
        root = self._copy()
        case.probe(root)
        return outcome_of(self.adapter, root, self._case / "workspace")


def _is_known(problem: str) -> bool:
    return "changed" in problem or problem.startswith("rejection lost")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, unlike ``tmp_path``."""
    monkeypatch.setattr(listing, "WAITS_S", [0.001])
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        subprocess.run(["chmod", "-R", "-f", "u+rwX", name], check=False)


@pytest.fixture(scope="module")
def other_user() -> Iterator[OtherUser]:
    """One process for all datasets: it takes two seconds to start."""
    with OtherUser() as started:
        yield started


@pytest.mark.parametrize("fixture", ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def test_damage_gives_right_records_or_a_reason(folder: Path, fixture: AdapterFixture, other_user: OtherUser) -> None:
    dataset = Dataset(fixture, folder)
    cases = [case for case in dataset.cases(CASES_IN_SOAK) if not case.of_other_user]
    number = ADAPTER_FIXTURES.index(fixture)  # other kinds for each source
    rights = dataset.rights()
    chosen = [*cases[number * CASES_IN_TEST :][:CASES_IN_TEST], rights[number % len(rights)]]
    problems = [problem for case in chosen for problem in dataset.try_case(case, other_user)[1]]
    assert problems == []


def test_another_user_hears_which_folder_may_not_be_read(folder: Path, other_user: OtherUser) -> None:
    dataset = Dataset(ADAPTER_FIXTURES[0], folder)
    closed = next(case for case in dataset.rights() if case.what.endswith("splits: mode 000"))
    found, problems = dataset.try_case(closed, other_user)
    assert problems == []
    if os.geteuid() == 0:
        assert re.search(r"splits.* cannot be read: Permission denied", found.error)
        assert outcome_of(dataset.adapter, folder / "case/holder/dataset", folder / "case/workspace").error == ""


@pytest.mark.soak
def test_nothing_that_another_user_may_not_read_is_lost_in_silence(
    folder: Path, other_user: OtherUser, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    problems: list[str] = []
    for fixture in ADAPTER_FIXTURES:
        dataset = Dataset(fixture, folder)
        for case in dataset.rights():
            found, wrong = dataset.try_case(case, other_user)
            counts[fixture.name, case.kind, "wrong" if wrong else found.kind] += 1
            problems += wrong
    with capsys.disabled():
        sys.stdout.write("\n".join(["", *lines_of(counts, ""), *problems, ""]))
    assert problems == []


@pytest.mark.soak
def test_every_kind_of_damage_to_every_source_gives_right_records_or_a_reason(
    folder: Path, other_user: OtherUser, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: Counter[tuple[str, str, str]] = Counter()
    wrong: list[str] = []
    for fixture in ADAPTER_FIXTURES:
        dataset = Dataset(fixture, folder)
        for case in dataset.cases(CASES_IN_SOAK):
            found, problems = dataset.try_case(case, other_user)
            counts[fixture.name, case.kind, "wrong" if problems else found.kind] += 1
            wrong += problems
        with capsys.disabled():
            sys.stdout.write("\n".join([*lines_of(counts, fixture.name), ""]))
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    with capsys.disabled():
        sys.stdout.write("\n".join([*lines_of(counts, ""), f"peak memory {peak_mb} MB", *wrong, ""]))
    assert wrong == []
    assert counts.total() >= 2000 or CASES_IN_SOAK < 130


@pytest.mark.soak
@pytest.mark.parametrize("fixture", ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def test_a_part_under_another_name_is_read_or_named(folder: Path, fixture: AdapterFixture) -> None:
    """Some names are free, such as those of sequences: under another one there are as many records."""
    dataset = Dataset(fixture, folder)
    before = dataset.pristine
    silent = []
    for case in dataset.misnamed():
        found = dataset.outcome_of(case)
        named = set(found.warnings) - set(before.warnings) or found.rejected.keys() - before.rejected.keys()
        if found.broken or (len(found.records) < len(before.records) and not (found.error or named)):
            silent.append(f"{case.what}: {len(found.records)} of {len(before.records)} records {found.broken}")
    assert silent == []


def lines_of(counts: Counter[tuple[str, str, str]], source: str) -> list[str]:
    """Return how often each kind of damage led to each outcome, for one source or for all."""
    by_kind: dict[str, Counter[str]] = {}
    for (name, kind, outcome), count in counts.items():
        if source in ("", name):
            by_kind.setdefault(kind, Counter())[outcome] += count
    total = sum(by_kind.values(), Counter())
    lines = [f"{source or 'all sources'}: {total.total()} inputs, {total['wrong']} wrong"]
    for kind, outcomes in sorted(by_kind.items()):
        shown = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
        lines.append(f"    {kind:12}{outcomes.total():5}: {shown}")
    return lines
