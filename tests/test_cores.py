"""OMP_NUM_THREADS is a setting of the machine that people leave in every form."""

import os

from cba_utils.answering.cores import worker_count

import pytest

CORES = os.cpu_count()


@pytest.mark.parametrize(
    ("setting", "workers"),
    [
        ("1", 1),
        ("2", 2),
        (" 1 ", 1),
        ("+1", 1),
        ("1.0", 1),
        ("1,2", 1),
        ("1, 1, 1", 1),
        ("", CORES),
        ("0", CORES),
        ("00", CORES),
        ("-1", CORES),
        ("0,2", CORES),
        ("many", CORES),
        ("1e3", CORES),
        ("0x2", CORES),
        (",", CORES),
        ("²", CORES),
        ("٣", min(3, 4 * CORES)),
        ("999999999", 4 * CORES),
        ("9" * 40, CORES),
    ],
)
def test_any_setting_gives_a_usable_number_of_workers(setting, workers, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert worker_count() == workers


def test_without_a_setting_every_core_works(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_count() == CORES
