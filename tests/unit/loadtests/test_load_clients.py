"""Which answers the load gives feedback about."""

from loadtests.load.clients import Answer, Answers


def recommendation(number: int) -> Answer:
    return Answer(request_id=f"r{number}", user_id="u", item_id="i")


def test_answers_that_outnumber_feedback_do_not_age() -> None:
    answers = Answers(limit=10)
    ages = []
    for number in range(1000):  # 1,000 answers, and feedback about every second of them
        answers.put(recommendation(number))
        if number % 2:
            taken = answers.take()
            assert taken is not None
            ages.append(number - int(taken.request_id[1:]))
    assert max(ages) < 10


def test_each_answer_is_handed_out_once_and_the_models_first() -> None:
    answers = Answers()
    model = Answer(request_id="m", user_id="u", item_id="")
    for answer in (recommendation(1), recommendation(2), model):
        answers.put(answer)
    assert [answers.take() for _ in range(4)] == [model, recommendation(1), recommendation(2), None]
