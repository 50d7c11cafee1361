import tracemalloc

from tests.unit.streams.joiner.test_core import Bench

MIB = 1024 * 1024


def test_memory_stays_flat_at_ten_times_the_bound_within_one_window() -> None:
    """2,500 requests of 4 KB in one window against a bound of 1 MiB; each has had feedback."""
    bench = Bench(max_pending_bytes=MIB)

    def feed(numbers: range) -> None:
        for number in numbers:
            bench.expose(f"r{number}", at=number, features_block=number.to_bytes(4, "big") * 1_000)
            bench.answer(request_id=f"r{number}", at=number)

    feed(range(500))
    tracemalloc.start()
    feed(range(500, 3_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bench.intake.pending_bytes <= MIB
    assert bench.counts["retired_early"] > 2_000
    assert held < 3 * MIB  # once the whole bound, since what was there at the start has gone
