"""Counting messages in compiled programs, and the formulas of what they cost."""

import jax
import pytest

from experiments.distributed import scale

TEXT = """
  %a = f32[6]{0:T(128)S(1)} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, foo
  %b = (f32[5,8,6]{2,1,0}, /*index=1*/bf16[3]{0}, pred[]) all-reduce-start(%x, %y, %z), replica_groups={{0,1},{2,3}}
  %c = (f32[5,8,6]{2,1,0}, bf16[3]{0}) all-reduce-done(%b), replica_groups={{0,1},{2,3}}
  %d = f64[10]{0} all-gather(%x), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  %e = f32[7]{0} all-reduce(%x), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %f = s32[2]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  %g = f32[6]{0} add(%all-reduce.1, %a), metadata={op_name="all-reduce(x)"}
"""


def test_messages_of_a_program():
    found = scale.messages(TEXT, devices=8)
    assert found == [
        scale.Message("all-reduce", ((6,),), 24, 4),
        scale.Message("all-reduce", ((5, 8, 6), (3,), ()), 4 * 240 + 6 + 1, 2),
        scale.Message("all-gather", ((10,),), 80, 4),
        scale.Message("all-reduce", ((2,),), 8, 8),
    ]
    with pytest.raises(ValueError, match="cannot tell the groups"):
        scale.messages(" %a = f32[6]{0} all-reduce(%x), replica_groups=new", 8)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_a_step_sends():
    """For each batch norm one message of 2C floats forward, one backward; in one more all gradients and the loss."""
    devices, channels = jax.devices()[:8], 6 + 16 + 120 + 84
    together = scale.step_counts(devices, 0)
    assert together["statistics"] == {"messages": 8, "bytes": 4 * 2 * 2 * channels}
    parameters = scale.LENET5.parameters - 2 * channels
    # At least: XLA may sum a convolution's gradient over the devices in the larger form its product has it in.
    assert together["gradients"]["messages"] == 1
    assert together["gradients"]["bytes"] >= 4 * (parameters + 1)
    assert together["kinds"] == ["all-reduce"]
    alone = scale.step_counts(devices, 1)
    assert alone["statistics"] == {"messages": 0, "bytes": 0}
    # γ, β and the running statistics travel with the gradients.
    assert alone["gradients"] == {"messages": 1, "bytes": 4 * (parameters + 1 + 4 * channels)}


@pytest.mark.few(0, 1)
@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 8])
def test_what_one_batch_norm_sends(devices):
    """By sharding the bytes do not depend on the number of devices; by `axis_name` those of the forward pass do.

    Without an assumed mean there is one more message, of a sample's mean.
    """
    there, channels = jax.devices()[:devices], 16
    sharded, named = (scale.layer_counts(there, channels, named=named) for named in (False, True))
    assert sharded == {
        "forward": {"messages": 2, "bytes": 4 * 3 * channels},
        "backward": {"messages": 1, "bytes": 4 * 2 * channels},
    }
    # Every device's five vectors, each at its own place.
    assert named["forward"] == {"messages": 1, "bytes": 20 * devices * channels}
    assert named["backward"] == {"messages": 1, "bytes": 4 * 2 * channels}


def test_costs_by_hand():
    nodes = scale.NETWORKS["H100: NVLink, NDR InfiniBand"]
    assert [nodes.small(p, 0) for p in (8, 256, 4096)] == pytest.approx([15.2, 65.2, 105.2])
    assert nodes.large(8, 450_000) - nodes.small(8, 0) == pytest.approx(2 * 7 / 8)
    torus = scale.NETWORKS["TPU v4: ICI, 3D torus"]
    assert [torus.small(p, 0) for p in (8, 256, 4096)] == [6, 20, 48]
    assert torus.small(4096, 270_000_000) == pytest.approx(2000)
    assert torus.small(8, 270_000_000) == pytest.approx(4000)  # open axes
    rows = scale.costs(scale.RESNET50, 3, 8, torus, 4096)
    assert rows == {"statistics": 159 * 48.0, "gradients": pytest.approx(2 * 4 * 25_557_032 / 270_000, abs=0.1)}


def test_the_networks_are_what_they_are_said_to_be():
    from bnderiv.models import lenet5

    params, _ = jax.eval_shape(lambda: lenet5.init(jax.random.key(0), lenet5.Config()))
    assert sum(a.size for a in jax.tree.leaves(params)) == scale.LENET5.parameters
    gammas = [layer["gamma"].size for name, layer in params.items() if "bn" in name]
    assert (len(gammas), sum(gammas)) == (scale.LENET5.norms, scale.LENET5.channels)
    # ResNet-50: a stem, and stages of bottlenecks (two convolutions of w channels, one of 4w), each with a shortcut's.
    channels = [64]
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        channels += [width, width, 4 * width] * blocks + [4 * width]
    assert (len(channels), sum(channels)) == (scale.RESNET50.norms, scale.RESNET50.channels)
