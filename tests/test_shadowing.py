"""A user's own files named as our modules break nothing of ours, and ours take nothing of theirs."""

from __future__ import annotations

import ast
import configparser
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import featurecache
from featurecache.shadowing import NAMES

ROOT = Path(__file__).resolve().parents[1]

USED = """
from pathlib import Path
import featurecache as fc
extracted = fc.extract_features("digits", backbone="demo", out="digits.zarr", layers="last", quiet=True)
trained = fc.train_head("digits.zarr", head="ridge", out="runs/ridge", quiet=True)
fitted = fc.HeadClassifier("ridge").fit("digits.zarr")
assert fitted.score("digits.zarr") > 0.8
assert isinstance(fitted.head_, fc.heads.ClosedForm)
assert fc.LogME is fc.logme.LogME
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a user's own files of all our names."""
    for name in ("heads", "cli", "logme", "save_features"):
        (tmp_path / f"{name}.py").write_text(f"MINE = {name!r}\n")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").write_text("MINE = 'pipelines'\n")
    (tmp_path / "pipelines/predict.py").write_text("MINE = 'predict'\n")
    return tmp_path


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code as a script that lies in a folder does: the folder comes first on the path, and ours behind it."""
    (folder / "script.py").write_text(code)
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=given, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("theirs_first", [True, False])
def test_beside_files_of_our_names_we_extract_and_train_and_theirs_stay_theirs(folder, theirs_first):
    theirs = f"import {', '.join(NAMES)}, pipelines.predict\n"
    held = (
        "".join(f"assert {name}.MINE == {name!r}\n" for name in NAMES) + "assert pipelines.predict.MINE == 'predict'\n"
    )

    done = run(theirs + USED + held if theirs_first else USED + theirs + held, folder)

    assert done.returncode == 0, done.stderr


def test_one_file_of_theirs_does_not_break_the_others_of_ours(tmp_path):
    (tmp_path / "heads.py").write_text("MINE = True\n")

    done = run(
        "from pipelines.estimator import HeadClassifier\nimport heads, featurecache as fc, pipelines\n"
        "assert heads.MINE and fc.HeadClassifier is HeadClassifier and fc.pipelines is pipelines\n"
        "HeadClassifier('ridge').fit([[0.0], [1.0]], [0, 1])\n",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first_on_the_path", [False, True])
def test_the_console_script_works_beside_files_of_our_names(folder, first_on_the_path):
    """Also where the folder is on PYTHONPATH, as in projects that are not installed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    module, _, function = config["options.entry_points"]["console_scripts"].partition("=")[2].strip().partition(":")
    (folder / "bin").mkdir()
    (folder / "bin/featurecache").write_text(f"from {module} import {function}\n{function}()\n")
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder)] * first_on_the_path + [str(ROOT)])}

    for arguments in (
        ["list", "heads"],
        ["extract-features", "digits", "--backbone", "demo", "--layers", "none", "--quiet", "--out", "d.zarr"],
        ["train-head", "d.zarr", "--head", "ridge", "--out", "run"],
    ):
        done = subprocess.run(
            [sys.executable, "bin/featurecache", *arguments],
            cwd=folder,
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (folder / "run/record.json").exists()


def test_workers_that_are_spawned_beside_files_of_our_names_read_and_train(folder):
    code = (
        "import featurecache as fc, torch\n"
        "if __name__ == '__main__':\n"
        "    fc.extract_features('digits', backbone='demo', out='digits.zarr', layers='last', quiet=True, workers=1)\n"
        "    dataset = fc.FeatureDataset('digits.zarr', 'embedding', split='train')\n"
        "    loader = torch.utils.data.DataLoader(dataset, 64, num_workers=1, multiprocessing_context='spawn')\n"
        "    assert sum(len(targets) for _, targets in loader) == len(dataset)\n"
    )

    done = run(code, folder)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["import featurecache", "import heads", "import pipelines.estimator"])
def test_no_module_exists_twice_whichever_name_comes_first(tmp_path, first):
    done = run(
        f"{first}\nimport heads, heads.ridge, pipelines, pipelines.estimator, logme, cli, save_features, featurecache, sys\n"
        "import featurecache.heads.ridge\nfrom featurecache.pipelines import estimator\nfrom featurecache import logme as ours\n"
        "assert heads is featurecache.heads and heads.ridge is featurecache.heads.ridge\n"
        "assert pipelines.estimator is estimator and estimator.HEADS is heads.HEADS\n"
        "assert ours is logme and cli is featurecache.cli and save_features is featurecache.save_features\n"
        "files = [m.__file__ for n, m in sys.modules.items() if getattr(m, '__file__', None) and n.startswith('featurecache')]\n"
        "assert len(files) == len(set(files)) > 50\n"
        "assert featurecache.HEADS.load('ridge') is heads.ridge and 'ridge' in dir(heads)\n",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr


def test_objects_are_pickled_under_the_name_that_nobody_can_take():
    from pipelines.estimator import HeadClassifier

    assert HeadClassifier.__module__ == "featurecache.pipelines.estimator"
    assert type(pickle.loads(pickle.dumps(HeadClassifier("ridge")))) is HeadClassifier
    old = b"cpipelines.estimator\nHeadClassifier\n."  # as pickled under the short name
    assert pickle.loads(old) is HeadClassifier


def test_importing_the_package_imports_neither_torch_nor_numpy(tmp_path):
    done = run(
        "import sys, featurecache\ndir(featurecache), featurecache.__all__\n"
        "assert not {'torch', 'numpy', 'zarr', 'click'} & set(sys.modules)\n",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", featurecache.__all__)
def test_everything_that_is_offered_is_there_and_says_what_it_is(name):
    found = getattr(featurecache, name)

    assert name in dir(featurecache)
    assert found.__doc__


def test_a_name_that_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'featurecache' has no attribute 'tarin_head'"):
        featurecache.tarin_head  # noqa: B018


def test_the_code_at_the_head_of_the_help_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = [line[4:] for line in featurecache.__doc__.splitlines() if line.startswith(">>> ")]
    names: dict[str, object] = {}

    exec("\n".join(code), names)

    assert len(code) == 5
    assert len(names["features"]) == len(names["targets"]) > 300


def test_no_module_of_ours_is_imported_by_a_short_name_as_text():
    """`importlib` does not know who asks, so that a text names ours only through `qualify_name`."""
    found = []
    for path in [*(ROOT / "featurecache").rglob("*.py"), *(ROOT / "heads").rglob("*.py"),
                 *(ROOT / "pipelines").rglob("*.py"), *(ROOT / f"{n}.py" for n in NAMES if (ROOT / f"{n}.py").exists())]:  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "files"):
                text = node.args[0] if node.args else None
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                first = parts[0]
                if isinstance(first, ast.Constant) and str(first.value).split(".")[0] in NAMES:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")

    assert not found


@pytest.mark.parametrize("first", ["", "import logme", "import featurecache.scoring"])
def test_logme_is_the_module_and_is_called_as_its_function(tmp_path, first):
    done = run(
        f"{first}\nimport numpy as np, featurecache as fc\nX, y = np.random.rand(40, 3), np.arange(40) % 2\n"
        "score = fc.logme(X, y)\n"
        "import logme\nassert fc.logme is logme and fc.LogME is logme.LogME\n"
        "assert score == logme.logme(X, y) == logme(X, y)\n",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
