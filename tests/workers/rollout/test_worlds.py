"""The families of worlds know by name what their rooms offer, without importing them."""

from st4vla.envs import suites
from st4vla.envs.simpler import suites as simpler_suites
from st4vla.workers.rollout.worlds import FAMILIES


def test_the_names_of_the_suites_are_those_that_the_worlds_plan():
    assert set(FAMILIES["tabletop"].suites) == set(suites.SUITES)
    assert set(FAMILIES["simpler"].suites) == set(simpler_suites.SUITES)
