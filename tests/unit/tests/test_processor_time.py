import gc

from tests.processor_time import growth, quickest_s


def pairs(number):
    return lambda: [one * other for one in range(number) for other in range(number)]


def test_work_that_grows_with_the_square_is_told_from_work_that_grows_with_the_size():
    assert growth(pairs(100), pairs(400)) > 9
    assert growth(lambda: sum(range(20_000)), lambda: sum(range(80_000))) < 9


def test_the_quickest_of_the_rounds_counts_and_the_works_take_turns():
    now, calls = [0.0], []

    def work(name, costs):
        def run():
            calls.append(name)
            now[0] += costs.pop(0)

        return run

    assert quickest_s(work("a", [3.0, 1.0, 2.0]), work("b", [5.0, 7.0, 4.0]), rounds=3, clock=lambda: now[0]) == [1.0, 4.0]
    assert calls == ["a", "b"] * 3


def test_the_collector_is_off_meanwhile_and_as_it_was_afterwards():
    seen = []
    quickest_s(lambda: seen.append(gc.isenabled()), rounds=1)
    gc.disable()
    try:
        quickest_s(lambda: seen.append(gc.isenabled()), rounds=1)
        seen.append(gc.isenabled())
    finally:
        gc.enable()
    assert seen == [False, False, False] and gc.isenabled()
