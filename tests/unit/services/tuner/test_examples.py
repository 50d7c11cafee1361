from services.common.events.chat import Message
from services.tuner.examples import Demonstration, ExampleBook, TuneRules, waits_for


def demonstration(number: int) -> Demonstration:
    return Demonstration(
        example_id=f"{number:03}", question=f"q{number}", messages=(Message("user", "q"),), answer="a", created_at_ms=1_000 + number
    )


def book(**limits) -> ExampleBook:
    return ExampleBook(**{"max_per_task": 10, "max_tasks": 2} | limits)


def test_an_example_counts_once_however_often_it_is_read():
    examples = book()
    assert examples.add_demonstration("t", demonstration(1))
    assert not examples.add_demonstration("t", demonstration(1))
    assert examples.add_judged("t", "j")
    assert not examples.add_judged("t", "j")
    assert (examples.num_demonstrations("t"), examples.num_judged("t")) == (1, 1)


def test_demonstrations_come_in_one_order_however_they_arrived():
    one, other = book(), book()
    for number in (3, 1, 2):
        one.add_demonstration("t", demonstration(number))
    for number in (1, 2, 3):
        other.add_demonstration("t", demonstration(number))
    assert one.demonstrations("t") == other.demonstrations("t") == [demonstration(1), demonstration(2), demonstration(3)]


def test_new_ones_are_counted_from_a_time_on():
    examples = book()
    for number in range(5):
        examples.add_demonstration("t", demonstration(number))
    assert examples.num_demonstrations("t", since_ms=1_003) == 2
    assert examples.num_demonstrations("other") == 0


def test_the_book_is_bounded_in_examples_and_tasks():
    examples = book(max_per_task=2)
    for number in range(3):
        examples.add_demonstration("t", demonstration(number))
        examples.add_judged("t", str(number))
    assert [one.example_id for one in examples.demonstrations("t")] == ["001", "002"]
    assert examples.num_judged("t") == 2
    examples.add_demonstration("u", demonstration(1))
    assert not examples.add_demonstration("v", demonstration(1))
    assert examples.tasks() == ["t", "u"]


def test_what_is_waited_for_is_said_with_numbers():
    rules = TuneRules(min_demonstrations=20, min_new_demonstrations=5, failed_retry_ms=1_000)
    assert waits_for(12, rules, has_evaluation=True, evaluation_file="t.yaml") == "12 demonstrations are there and 20 are needed"
    assert waits_for(20, rules, has_evaluation=False, evaluation_file="t.yaml") == "there is no evaluation file t.yaml"
    assert waits_for(20, rules, has_evaluation=True, evaluation_file="t.yaml") == ""
