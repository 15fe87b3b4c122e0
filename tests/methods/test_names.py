"""The contract is small."""

from keras import Layer

from keras_mhgd.methods import Method


def test_a_method_has_at_most_fourteen_public_names():
    own = {
        name
        for name in {*vars(Method), *vars(Method())} - set(dir(Layer()))
        if not name.startswith("_")
    }
    overridden = {"build", "call", "get_config"}
    assert own | overridden == {
        *("terms", "needs", "spans", "trains_teacher", "weight", "task"),
        *("gradient_rule", "preparation", "build", "targets", "reduce"),
        *("call", "update", "get_config"),
    }
