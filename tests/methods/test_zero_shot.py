from raymerge.methods import METHODS


def test_nothing_to_compute():
    method = METHODS["zero-shot"]
    assert method.merge is method.task_update is method.factorise is method.statistic is None
    assert method.alpha.at(20) == 0
