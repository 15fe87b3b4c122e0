"""The contract is small."""

import pytest
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


def test_a_method_needs_its_call():
    class Silent(Method):
        pass

    text = "must implement `call`. Received: Silent, .* Give it a `call`"
    with pytest.raises(NotImplementedError, match=text):
        Silent().call(None, None, None)
