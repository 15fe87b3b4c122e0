"""Published results, to stand beside one's own.

python -m training.literature > docs/published.md
"""

from training import tables

_HEAD = """# Published results

The commands are in [BUILD.md](../BUILD.md); nobody has run them here yet, so
the last column is empty. Left out, since the publications don't say enough of
them: students VGG and ResNet of WRN22-4 on CIFAR-100, and KD-EID.
"""
_LEE_SONG = "S. Lee, B. C. Song, BMVC 2019, arXiv:1907.02226; test accuracy, %"
_AUTHORS_CODE = (
    "code of S. Lee and B. C. Song; test accuracy of the last / best epoch, "
    "%, mean of five trials"
)

# (dataset, teacher, student): (source, results by the methods' names here;
# "student" and "teacher" are the networks alone, "1 head" is MHGD with one).
_PUBLISHED = {
    ("cifar100", "vgg16", "vgg7"): (
        _LEE_SONG,
        {
            "teacher": "67.99",
            "student": "59.97",
            "soft_logits": "60.95",
            "fsp": "61.87",
            "activation_boundaries": "64.56",
            "kd_svd": "64.25",
            "kd_svdf": "64.38",
            "mhgd": "67.02",
            "1 head": "65.71",
            "2 heads": "66.41",
            "4 heads": "67.01",
            "16 heads": "66.70",
        },
    ),
    ("cifar100", "wrn_22_4", "wrn_10_4"): (
        _LEE_SONG,
        {
            "teacher": "77.22",
            "student": "71.62",
            "soft_logits": "71.88",
            "fsp": "71.57",
            "activation_boundaries": "72.23",
            "kd_svd": "71.83",
            "kd_svdf": "71.82",
            "mhgd": "72.79",
        },
    ),
    ("tiny_imagenet", "vgg16", "vgg7"): (
        _LEE_SONG,
        {
            "teacher": "56.30",
            "student": "52.40",
            "soft_logits": "53.78",
            "fsp": "54.85",
            "activation_boundaries": "54.99",
            "kd_svd": "55.33",
            "kd_svdf": "55.35",
            "mhgd": "56.35",
        },
    ),
    ("tiny_imagenet", "wrn_22_4", "wrn_10_4"): (
        _LEE_SONG,
        {
            "teacher": "61.31",
            "student": "55.91",
            "soft_logits": "56.00",
            "fsp": "56.04",
            "activation_boundaries": "56.53",
            "kd_svd": "55.72",
            "kd_svdf": "55.95",
            "mhgd": "56.90",
        },
    ),
    ("cifar100", "wrn_22_4", "mobilenet"): (
        _LEE_SONG,
        {
            "student": "66.18",
            "soft_logits": "67.35",
            "fsp": "60.35",
            "activation_boundaries": "67.84",
            "kd_svd": "67.03",
            "mhgd": "68.32",
        },
    ),
    ("cifar100", "resnet32", "resnet8"): (
        _AUTHORS_CODE,
        {
            "student": "71.76 / 71.92",
            "teacher": "78.96 / 79.08",
            "soft_logits": "71.79 / 72.08",
            "fitnet": "72.74 / 72.96",
            "attention_transfer": "72.31 / 72.60",
            "fsp": "72.65 / 72.91",
            "mutual_learning": "73.27 / 73.47",
            "kd_svd": "73.68 / 73.78",
            "factor_transfer": "73.35 / 73.50",
            "activation_boundaries": "73.08 / 73.41",
            "rkd": "73.40 / 73.48",
            "mhgd": "73.98 / 74.30",
        },
    ),
}


def published(
    dataset: str, teacher: str, student: str
) -> tuple[str, dict[str, str]]:
    """Looks up published results of a pair of networks.

    Args:
        dataset: Name of the data set.
        teacher: Name of the teacher's architecture.
        student: Name of the student's.

    Returns:
        The source, and results by the name of the method; two empty ones if
        none are known.
    """
    return _PUBLISHED.get((dataset, teacher, student), ("", {}))


def text() -> str:
    """Writes all published results as Markdown, beside an empty column."""
    parts = [_HEAD]
    for (dataset, teacher, student), (source, results) in _PUBLISHED.items():
        cells = [["", "published", "here"]]
        cells += [[name, result, ""] for name, result in results.items()]
        parts.append(
            f"## {student} from {teacher}, {dataset}\n\n"
            f"{tables.markdown(cells)}\n{source[0].upper()}{source[1:]}.\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(text(), end="")
