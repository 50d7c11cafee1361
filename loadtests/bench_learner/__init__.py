"""How many samples of the demo one core learns a second, beside plain torch and another commit: python -m loadtests.bench_learner."""
