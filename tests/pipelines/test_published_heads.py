"""`--load-published lfa FILE`: a head begins at the values of the paper's code, from a store and online; or is told why not."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from featurecache.errors import ConfigError, UnknownNameError
from heads._checkpoint import TENSORS
from heads._published_lfa import HERE, theirs
from pipelines.train_head import TrainHeadConfig
from pipelines.train_head import run as train_head
from pipelines.train_online import run as train_online
from save_features import SaveFeaturesConfig
from save_features import run as extract
from tests.featurecache.backbones.clip_samples import VIT, written
from tests.pipelines.online_samples import online, photos


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder of images, a CLIP model, its store, and a run of `lfa_clip` on it; each with its path."""
    folder = tmp_path_factory.mktemp("published")
    data, clip = photos(folder / "photos", each=4), written(VIT, folder)
    extract(
        SaveFeaturesConfig(
            data=str(data), backbone=clip, out=folder / "x.zarr", layers="all", weights="random:0", quiet=True
        )
    )
    found = {"data": data, "clip": clip, "store": folder / "x.zarr", "run": folder / "run"}
    train_head(cached(found, folder / "run", epochs=1))
    return found


def cached(places, out, **settings):
    return TrainHeadConfig(
        store=places["store"], out=out, **{"head": "lfa_clip", "epochs": 0, "quiet": True, **settings}
    )


def in_their_names(run, few_shot, **more):
    """Return a file of a head's values as the paper's code calls them."""
    ours = {name: value for name, value in load_file(run / TENSORS).items() if name in HERE.values()}
    state = {theirs(name, few_shot): value if few_shot else value.T.contiguous() for name, value in ours.items()}
    file = run.parent / f"{'few-shot' if few_shot else 'dg'}{len(more)}.safetensors"
    save_file({**state, **more}, file)
    return file


@pytest.mark.parametrize("few_shot", [True, False])
def test_a_head_begins_at_published_values_from_a_store_and_online(places, few_shot, tmp_path):
    file = in_their_names(places["run"], few_shot, logit_scale=torch.zeros(1))
    settings = {"head": "lfa_clip", "backbone": places["clip"], "image_size": None, "epochs": 0}

    done = train_head(cached(places, tmp_path / "cached", load_published=("lfa", file)))
    again = train_head(cached(places, tmp_path / "cached", load_published=("lfa", file)))
    train_online(online(places["data"], tmp_path / "online", load_published=("lfa", file), **settings))

    wanted = load_file(places["run"] / TENSORS)
    for run in ("cached", "online"):
        found = load_file(tmp_path / run / TENSORS)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted if name in HERE.values())
    assert (done.repeated, again.repeated) == (False, True)


def test_values_of_another_form_are_told_all_at_once_and_nothing_is_written(places, tmp_path):
    file = in_their_names(places["run"], few_shot=False, visual_self_Q_down=torch.zeros(2, 4))
    whole = load_file(file)
    del whole["textual_cross_K_origin"]
    whole["textual_cross_V_origin"] = torch.zeros(3, 5)
    save_file(whole, tmp_path / "less.safetensors")

    with pytest.raises(ConfigError, match=(
        r"1 missing: text_cross.key.weight; 1 foreign to it: image.query.down.weight; 1 of another shape: "
        r"text_cross.value.weight is \(5, 3\), but .* wanted\): give the --head-option"
    )):  # fmt: skip
        train_head(cached(places, tmp_path / "run", load_published=("lfa", tmp_path / "less.safetensors")))

    assert not (tmp_path / "run").exists()


def test_values_of_a_head_are_no_others_and_those_of_methods_are_sent_to_train_online(places, tmp_path):
    file = in_their_names(places["run"], few_shot=True)

    with pytest.raises(ConfigError, match="brings values of the head lfa_clip, not of linear: give --head lfa_clip"):
        train_head(cached(places, tmp_path / "run", head="linear", load_published=("lfa", file)))
    with pytest.raises(UnknownNameError, match="--load-published peft .* only train-online --peft takes"):
        train_head(cached(places, tmp_path / "run", load_published=("peft", file)))
    with pytest.raises(
        UnknownNameError, match="called 'lfo'. Did you mean 'lfa'. .*of heads, lfa, and .* dtl, ila, peft"
    ):
        train_online(online(places["data"], tmp_path / "run", load_published=("lfo", file)))

    assert not (tmp_path / "run").exists()
