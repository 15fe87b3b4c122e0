"""Rewrites the configurations of archived runs in the new names of flags."""

import json, pathlib, sys, re, tomllib

from benchmarks.accuracy import evidence
from training.runs.comparison import command_line, _slug

root = pathlib.Path(sys.argv[1]) / "evidence"


def typed(text):
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def parse(flags):
    made = {}
    for each in flags:
        name, eq, value = each.removeprefix("--").partition("=")
        if name == "set":
            made.setdefault("set", []).append(value)
        elif not eq and name.startswith("no"):
            made[name[2:]] = False
        elif not eq:
            made[name] = True
        else:
            made[name] = typed(value)
    return made


count = 0
for name, table in evidence.TABLES.items():
    for folder, search in (
        (root / name, False),
        (root / f"{name}_search", True),
    ):
        path = folder / "config.json"
        if not path.exists():
            continue
        config = json.loads(path.read_text())
        if isinstance(config["shared"], dict):
            continue
        shared = parse(config["shared"])
        known = dict(table.ways) | evidence.OURS | {"mhgd": evidence._mhgd()}
        ways = {}
        for way, (program, *flags) in config["ways"].items():
            own = parse(flags)
            sets = own.pop("set", None)
            if search:
                method, argument, value = way.split()
                if method == "mhgd":
                    own |= evidence._mhgd()
                if argument != "learning_rate":
                    own["set"] = own.get("set", {}) | {argument: float(value)}
            elif way in known:
                own |= {
                    k: v
                    for k, v in tomllib.loads(evidence.toml({way: known[way]}))[
                        "way"
                    ][0].items()
                    if k != "name"
                }
            elif sets:
                method, rest = way.split(", ")
                argument, value = rest.split(" ")
                assert own["method"] == method and sets == [
                    f"{argument}={value}"
                ], (way, sets)
                flags = (
                    evidence._mhgd() if method == "mhgd" else {"method": method}
                )
                own |= flags | {
                    "set": flags.get("set", {}) | {argument: float(value)}
                }
            ways[way] = {"program": program, **own}
            for run in folder.glob(f"{_slug(way)}_[0-9]*"):
                if not re.fullmatch(re.escape(_slug(way)) + r"_\d+", run.name):
                    continue
                cpath = run / "config.json"
                c = json.loads(cpath.read_text())
                if program == "distill":
                    c["method"] = own["method"]
                    c["set"] = [
                        each.removeprefix("--set=")
                        for each in command_line({"set": own.get("set", {})})
                    ]
                    if "cache_teacher" in own:
                        c["cache_teacher"] = own["cache_teacher"]
                text = json.dumps(c, indent=2, sort_keys=True) + "\n"
                cpath.write_text(text)
                r = run / "result.json"
                if r.exists():
                    res = json.loads(r.read_text())
                    res["configuration"] = c
                    r.write_text(
                        json.dumps(res, indent=2, sort_keys=True) + "\n"
                    )
                count += 1
        path.write_text(
            json.dumps({"shared": shared, "ways": ways}, indent=2) + "\n"
        )
print(count)
