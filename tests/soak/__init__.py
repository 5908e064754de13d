"""The soak: owners that do what users do, at random, while what they depend on is killed, filled and locked.

``python -m tests.soak --minutes 10 --seed 7``. All chance comes from the seed and the number of the round;
``--round N`` starts with that one. Timing is the machine's: a seed repeats the plan, not every race.
"""
