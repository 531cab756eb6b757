"""LayerCHOP closes the layers that it says, when it says, and leaves nothing of them."""

import pytest
import torch
from stepping import TWINS, architecture, model, train

from llmshearing import training
from llmshearing.checkpoints.opening import read_checkpoint
from llmshearing.commands.prune import prune_checkpoint
from llmshearing.config import LayerChopConfig, ModelConfig
from llmshearing.planning.prepared import prepare
from llmshearing.planning.text import describe
from llmshearing.pruning import aim_of, scores, source_problems
from llmshearing.pruning.cut import cut
from llmshearing.pruning.layerchop import LayerChop, layers_to_remove
from llmshearing.pruning.score_file import Origin, Scores, shape_of, write_scores
from llmshearing.shapes.model_section import complete
from processes import metrics
from runs import run_config, write_data
from twins import tokens


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", TWINS)
@torch.no_grad()
def test_closed_layers_equal_the_model_without_them(name):
    arch = architecture(name, n_layers=5)
    masked = model(arch, layerchop={"keep": [0, 3, 4], "warm_steps": "0ba"}).eval()
    masked.model.method.begin_step(0, 1)
    weights, smaller = cut(masked.state_dict(), masked.model.method.final_gates(), arch)
    assert smaller == arch.resized(n_layers=3) == masked.model.method.target
    pruned = model(smaller).eval()
    pruned.load_state_dict(weights)
    ids = tokens(16)
    assert torch.allclose(
        masked({"input_ids": ids})["logits"], pruned({"input_ids": ids})["logits"], atol=1e-5
    )


def test_layers_close_on_time_and_keep_their_weights():
    made = model(
        architecture("llama", n_layers=5),
        layerchop={
            "n_layers": 3,
            "scheme": "input",
            "warm_steps": "2ba",
            "layers_per_cut": 1,
            "interval": "2ba",
        },
    )
    method, closed, weights = made.model.method, [], []

    def note(step):
        closed.append((method.layers == 0).nonzero().flatten().tolist())
        weights.append(
            [block.mlp.up_proj.weight.detach().clone() for block in made.model.transformer["blocks"]]
        )

    train(made, 6, note)
    assert closed == [[], [], [1], [1], [1, 2], [1, 2]]
    for layer, since in ((1, 1), (2, 3)):
        assert torch.equal(weights[since][layer], weights[-1][layer])
        assert not torch.equal(weights[since - 1][layer], weights[since][layer])
    assert not torch.equal(weights[3][3], weights[-1][3])


def test_nothing_is_masked_before_the_first_cut():
    made = model(architecture("llama", n_layers=3), layerchop={"n_layers": 2})
    made.model.method.begin_step(499, 1000)
    assert made.model.method.gates() == {}
    made.model.method.begin_step(500, 1000)
    assert made.model.method.gates()["mlp"].tolist() == [1, 0, 1]


def test_a_run_cuts_and_its_checkpoint_makes_the_target(data, tmp_path):
    section = {"n_layers": 3, "warm_steps": "2ba", "layers_per_cut": 1, "interval": "4ba"}
    config = run_config(
        data, tmp_path, prune=False, model__n_layers=5, model__layerchop=section, max_duration="8ba"
    )
    training.train(config)
    logged = [
        values["metrics/train/expected_layer_sparsity"] for values in list(metrics(tmp_path).values())[:-1]
    ]
    assert logged == pytest.approx([0, 0, 0.2, 0.2, 0.2, 0.2, 0.4, 0.4], abs=1e-6)
    assert "Layers that go, in this order, counted from 0: 1, 3." in describe(prepare(config), [1])
    pruned = prune_checkpoint(read_checkpoint(tmp_path / "latest-rank0.pt"), {})
    assert pruned.arch.n_layers == 3
    assert all(row.reached for row in pruned.convergence.values())
    early = prune_checkpoint(read_checkpoint(tmp_path / "ep0-ba4-rank0.pt"), {})
    assert early.arch.n_layers == 3
    assert not any(row.reached for row in early.convergence.values())
    with pytest.raises(
        ValueError, match=r"'n_layers': 2} was given, but the layers in .* make {'n_layers': 3}"
    ):
        prune_checkpoint(read_checkpoint(tmp_path / "latest-rank0.pt"), {"n_layers": 2})


def test_layers_never_trained_resume(data, tmp_path):
    """The optimizer has no state for them."""
    settings = {"model__layerchop": {"n_layers": 2, "warm_steps": "0ba"}, "eval_interval": "0ba"}
    for end in ("2ba", "3ba"):
        config = run_config(data, tmp_path, prune=False, max_duration=end, autoresume=True, **settings)
        training.train(config)
    assert max(metrics(tmp_path)) == 3


def test_importance_is_read_from_a_file(tmp_path):
    arch = architecture("llama", n_layers=4)
    by_kind = scores.random(arch, 0) | {"layer": torch.tensor([0.1, 0.2, 0.7, 0.1])}

    def write(method):
        origin = Origin(method, shape_of(arch), "abc", {})
        write_scores(tmp_path / "scores.safetensors", Scores(by_kind, origin))

    write("activation")
    settings = LayerChopConfig(n_layers=3, scheme="importance", scores=str(tmp_path / "scores.safetensors"))
    assert layers_to_remove(settings, arch) == [1]
    with pytest.raises(ValueError, match=r"belong to a model of a different shape: n_layers 4"):
        layers_to_remove(settings, arch.resized(n_layers=5))
    config = complete(ModelConfig(layerchop=settings), arch, "twin")
    weights = model(arch).state_dict()
    assert "were made from other weights than those of x.pt" in source_problems(config, weights, "x.pt")[0]
    write("magnitude")
    for problems in (aim_of(config, arch).problems, source_problems(config, weights, "x.pt")):
        assert "scores by 'magnitude'; expected scores by activation or taylor" in problems[0]
        assert "--method activation --data DATA --scores FILE" in problems[0]
    settings.scores = str(tmp_path / "none.safetensors")
    aim = aim_of(config, arch)
    assert aim.target.n_layers == 3
    assert "none.safetensors not found" in aim.problems[0]


def test_more_than_one_method_is_rejected(data):
    sections = {"model__layerchop": {"n_layers": 2}, "model__dimchop": {"target_model": {"d_model": 16}}}
    with pytest.raises(ValueError, match=r"model.layerchop and model.dimchop are both set; a run has one"):
        training.train(run_config(data, prune=False, **sections))


def test_a_resumed_run_has_the_layers_of_its_checkpoint():
    """Whatever the file of scores says by then."""
    arch = architecture("llama", n_layers=4)
    made = model(arch, layerchop={"keep": [0, 1, 3], "warm_steps": "0ba"})
    made.model.method.load_state_dict({"order": torch.tensor([0, 1, 0, 0]), "layers": torch.ones(4)})
    made.model.method.begin_step(3, 4)
    assert made.model.method.gates()["attention"].tolist() == [1, 0, 1, 1]


def test_gates_of_a_model_with_another_depth_are_rejected():
    arch = architecture("llama", n_layers=4)
    tensors = {"order": torch.zeros(3), "layers": torch.ones(3)}
    with pytest.raises(ValueError, match="do not match its 4 layers"):
        LayerChop.restored(tensors, complete(ModelConfig(), arch, "twin"), None, "x.pt")
