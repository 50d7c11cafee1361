from dataclasses import replace

from services.common.events.chat import Message
from services.tuner.examples import Demonstration, ExampleBook, TuneRules, waits_for


def demonstration(number: int, **fields) -> Demonstration:
    known = {
        "example_id": f"{number:03}",
        "question": f"q{number}",
        "messages": (Message("user", "q"),),
        "answer": "a",
        "created_at_ms": 1_000 + number,
    }
    return Demonstration(**(known | fields))


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
    assert examples.counted_ms("t", most_of_a_user=9, since_ms=1_003) == [1_003, 1_004]
    assert (examples.num_demonstrations("other"), examples.counted_ms("other", most_of_a_user=9)) == (0, [])


def test_variants_of_one_fact_count_once_and_a_corrected_answer_counts_again():
    examples = book(max_per_task=100)
    signs = ("", "!", "?", "??", "...", " !", "?!", ";", ":", " - ")
    for number, sign in enumerate([*signs, *(f" please{sign}" for sign in signs)]):
        examples.add_demonstration("t", demonstration(number, question=f"How long may I keep it{sign}", answer=f"Nine days{sign[-1:]}"))
    assert examples.num_demonstrations("t") == 20
    assert examples.counted_ms("t", most_of_a_user=100) == [1_000, 1_010]  # "Nine days" and "Nine dayse"
    examples.add_demonstration("t", demonstration(30, question="How long may I keep it?", answer="Ten days."))
    assert examples.counted_ms("t", most_of_a_user=100, since_ms=1_025) == [1_030]
    examples.add_demonstration("t", demonstration(31, question="How long may I keep it", answer="TEN days"))
    assert examples.counted_ms("t", most_of_a_user=100, since_ms=1_025) == [1_030]


def test_one_user_fills_a_part_of_a_threshold_and_users_of_old_examples_are_not_told_apart():
    examples = book(max_per_task=100)
    for number in range(30):
        examples.add_demonstration("t", demonstration(number, user_id="ada"))
    assert len(examples.counted_ms("t", most_of_a_user=10)) == 10
    for number in range(30, 34):
        examples.add_demonstration("t", demonstration(number, user_id="bo"))
    for number in range(40, 43):
        examples.add_demonstration("t", demonstration(number))
    assert len(examples.counted_ms("t", most_of_a_user=10)) == 10 + 4 + 3
    rules = TuneRules(min_demonstrations=20, min_new_demonstrations=5, failed_retry_ms=1_000, max_user_share=0.5)
    assert (rules.most_of_a_user(20), rules.most_of_a_user(1)) == (10, 1)


def test_questions_of_demonstrations_that_are_gone_are_forgotten():
    examples = book(max_per_task=5)
    for number in range(100):
        examples.add_demonstration("t", demonstration(number))
    assert len(examples.counted_ms("t", most_of_a_user=9)) == 5
    assert len(examples._tasks["t"].questions) <= 11
    assert len(examples._tasks["t"].facts) == 5


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
    assert waits_for(12, 12, rules, has_evaluation=True, evaluation_file="t.yaml") == "12 demonstrations are there and 20 are needed"
    assert waits_for(20, 20, rules, has_evaluation=False, evaluation_file="t.yaml") == "there is no evaluation file t.yaml"
    assert waits_for(20, 20, rules, has_evaluation=True, evaluation_file="t.yaml") == ""
    half = replace(rules, max_user_share=0.5)
    assert waits_for(30, 10, half, has_evaluation=True, evaluation_file="t.yaml") == (
        "30 demonstrations are there, 10 of them count and 20 are needed: what says the same counts once, and one user fills 10 at most"
    )
