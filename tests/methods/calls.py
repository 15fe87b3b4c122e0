"""What the distiller does around a method's call."""

from keras_mhgd.transfer import shares_of


def called(method, student, teacher, labels=None):
    """Calls a method with what it reduces features to."""
    reduced = method.reduce(student, method.targets(teacher))
    return method(*reduced, labels)


def shares(method, student, teacher, labels=None):
    """Computes the terms as a training step does."""
    return shares_of(method, student, method.targets(teacher), labels)
