"""The rule that shares cores and GPUs out between the halves of the split graph."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.scoring.sizing import (
    DECODER_CORES,
    IN_FLIGHT,
    SMALLEST_BATCH,
    Machines,
    Rates,
    direct_rate,
    padded,
    plan_split,
)

machines = st.builds(
    Machines,
    cores=st.integers(2, 2000),
    gpus=st.integers(1, 64),
    gpu_memory=st.none() | st.integers(1 << 30, 200 << 30),
    store=st.none() | st.integers(64 << 20, 1 << 40),
)
rates = st.builds(Rates, decode=st.floats(5, 2000), kernel=st.floats(1, 1000), gpu=st.floats(1, 50_000))


@given(machines, rates, st.integers(32, 1024), st.integers(1, 4096))
def test_no_plan_takes_more_than_there_is(have: Machines, speed: Rates, side: int, shard: int) -> None:
    plan = plan_split(have, speed, side, shard)
    assert 1 <= plan.gpus <= have.gpus and plan.decoders >= 1
    assert plan.gpus + plan.decoders * DECODER_CORES <= have.cores + 1e-9
    assert plan.batch == 1 << (plan.batch.bit_length() - 1) >= SMALLEST_BATCH
    assert plan.batch < 2 * max(shard, SMALLEST_BATCH)
    if have.store is not None and plan.batch > SMALLEST_BATCH:
        assert plan.decoders * IN_FLIGHT * plan.batch * side * side * 3 <= have.store / 2
    assert plan.sizes[-1] == plan.batch and list(plan.sizes) == sorted(set(plan.sizes))
    assert plan.answer_seconds * plan.gpus * speed.gpu >= plan.decoders * IN_FLIGHT * plan.batch


@given(machines, rates, st.integers(1, 4096))
def test_what_is_promised_is_what_the_narrower_half_gives(have: Machines, speed: Rates, shard: int) -> None:
    plan = plan_split(have, speed, 224, shard)
    cores = have.cores - plan.gpus
    assert plan.split_rate == pytest.approx(min(cores * speed.decode, plan.gpus * speed.gpu))
    # One GPU fewer could not answer what is decoded.
    if plan.gpus > 1:
        assert (plan.gpus - 1) * speed.gpu < (cores + 1) * speed.decode
    # Nor could one actor fewer decode what the GPUs answer, where there are cores for one more.
    if (plan.decoders + 1) * DECODER_CORES <= cores:
        assert plan.decoders * DECODER_CORES * speed.decode >= plan.gpus * speed.gpu * (1 - 1e-9)


def test_a_machine_with_one_gpu_decodes_on_all_other_cores() -> None:
    plan = plan_split(Machines(16, 1, 80 << 30), Rates(300, 150, 6000), 224, 64)
    assert (plan.gpus, plan.decoders, plan.batch) == (1, 18, 64)
    assert plan.split_rate == 15 * 300
    assert plan.direct_rate == pytest.approx(16 * 100)
    assert plan.worth_it


def test_one_gpu_among_many_cores_is_not_worth_it() -> None:
    plan = plan_split(Machines(64, 1), Rates(300, 150, 2500), 224, 64)
    assert not plan.worth_it and plan.decoders == 11
    # A network for which a core takes 70 ms is another matter.
    assert plan_split(Machines(64, 1), Rates(300, 15, 1500), 224, 64).worth_it


def test_gpus_that_cores_cannot_feed_are_left_to_others() -> None:
    assert plan_split(Machines(16, 8), Rates(300, 150, 2500), 224, 64).gpus == 2
    assert plan_split(Machines(3, 8), Rates(300, 150, 100), 224, 64).gpus == 1


def test_batches_follow_shard_memory_and_object_store() -> None:
    assert plan_split(Machines(16, 1, 80 << 30), Rates(), 224, 4096).batch == 128
    assert plan_split(Machines(16, 1, 80 << 30), Rates(), 224, 20).batch == 32
    assert plan_split(Machines(16, 1, 4 << 30), Rates(), 224, 64).batch == 32
    assert plan_split(Machines(16, 1, 80 << 30, store=200 << 20), Rates(), 224, 64).batch < 64


def test_a_core_that_decodes_and_answers_takes_the_sum_of_both_times() -> None:
    assert direct_rate(2, Rates(decode=100, kernel=100)) == pytest.approx(100)


@given(st.integers(1, 128), machines)
def test_padding_is_the_smallest_size_that_holds_the_images(images: int, have: Machines) -> None:
    sizes = plan_split(have, Rates(), 96, 128).sizes
    if images > sizes[-1]:
        with pytest.raises(ValueError, match="batch of at most"):
            padded(images, sizes)
        return
    size = padded(images, sizes)
    assert size in sizes and size >= images and not any(images <= other < size for other in sizes)
