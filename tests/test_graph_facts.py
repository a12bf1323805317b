"""What a graph says about itself is read wherever ONNX can hide it."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_engines_runtimes import quantised_graph
from tiny_bundle import make_tiny_bundle

from memcli.engines.bundle import hash_files, read_bundle, verify_files, write_manifest
from memcli.engines.loading import graph_facts
from memcli.errors import ModelError

FILE = "outside.bin"


def outside(name="weight", dims=(2,)) -> TensorProto:
    """A float tensor whose values are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=FILE)
    return tensor


def sparse():
    indices = numpy_helper.from_array(np.array([0, 3], np.int64), "weight_indices")
    return helper.make_sparse_tensor(outside(), indices, [9])


def floats(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])


def if_node(nodes, initializers=(), sparse_initializers=()):
    """If with the same nodes in both branches; they give `y`."""
    branch = helper.make_graph(
        nodes, "branch", [], [floats("y")], initializers, sparse_initializer=sparse_initializers
    )
    return helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)


def loop_node(body_nodes, initializers):
    body = helper.make_graph(
        body_nodes,
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("before"),
        ],
        [helper.make_tensor_value_info("goes", TensorProto.BOOL, []), floats("after")],
        initializers,
    )
    return helper.make_node("Loop", ["trips", "flag", "x"], ["y"], body=body)


def model(nodes, initializers=(), sparse_initializers=(), functions=()):
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, []), floats("x")],
        [floats("y")],
        [numpy_helper.from_array(np.array(2, np.int64), "trips"), *initializers],
        sparse_initializer=sparse_initializers,
    )
    return helper.make_model(graph, functions=functions)


COPY = helper.make_node("Identity", ["weight"], ["y"])
LOOPED = [
    helper.make_node("Identity", ["go"], ["goes"]),
    helper.make_node("Add", ["before", "weight"], ["after"]),
]
INNER = if_node([COPY], [outside()])
FUNCTION = helper.make_function(
    "made", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=outside())], []
)
HIDDEN = {
    "top level": model([COPY], [outside()]),
    "if": model([INNER]),
    "if in if": model([if_node([INNER])]),
    "constant in if": model([if_node([helper.make_node("Constant", [], ["y"], value=outside())])]),
    "loop": model([loop_node(LOOPED, [outside()])]),
    "sparse": model([COPY], [], [sparse()]),
    "sparse in if": model([if_node([COPY], [], [sparse()])]),
    "sparse constant": model([helper.make_node("Constant", [], ["y"], sparse_value=sparse())]),
    "another attribute": model(
        [helper.make_node("ConstantOfShape", ["s"], ["y"], value=outside())]
    ),
    "function": model([helper.make_node("F", [], ["y"], domain="made")], functions=[FUNCTION]),
    "training": model([COPY]),
}
HIDDEN["training"].training_info.add().algorithm.initializer.append(outside())
LISTS = model([COPY])
LIST = LISTS.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
LIST.tensors.append(outside())
HIDDEN["a list of tensors"] = LISTS


@pytest.mark.parametrize("place", HIDDEN)
def test_a_file_is_found_wherever_it_is_named(tmp_path, place):
    path = tmp_path / "model.onnx"
    path.write_bytes(HIDDEN[place].SerializeToString())
    assert graph_facts(path).external_files == {FILE}


@pytest.mark.parametrize("place", ["if", "loop", "sparse in if", "function"])
def test_a_bundle_with_a_hidden_file_is_refused(memcli_home, place):
    bundle = make_tiny_bundle(memcli_home)
    variant = bundle.variants["fp32"]
    bundle.graph_path(variant).write_bytes(HIDDEN[place].SerializeToString())
    files = hash_files(bundle.root, [variant.graph])
    write_manifest(
        dataclasses.replace(bundle, variants={"fp32": dataclasses.replace(variant, files=files)})
    )
    bundle = read_bundle(bundle.root)
    with pytest.raises(ModelError, match=f"without a hash: '{FILE}'"):
        verify_files(bundle, bundle.variants["fp32"])


def test_quantisation_inside_a_branch_is_seen(tmp_path):
    inner = quantised_graph(np.array(0, np.uint8)).graph
    branch = if_node(list(inner.node), list(inner.initializer))
    path = tmp_path / "model.onnx"
    path.write_bytes(model([branch]).SerializeToString())
    assert graph_facts(path).quantised_to == {"uint8"}
