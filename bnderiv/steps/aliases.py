"""Names that others give the steps: CS231n, Kratzert's graph of batch norm, Karpathy's makemore, PyTorch."""

_OTHERS: dict[str, str] = {
    # What is ours: what others say. A name may stand for one step of one layer and another step of another.
    "x": "input inp hprebn",
    "dy": "dout grad_output grad_out upstream dhpreact",
    "dx": "grad_input dinput dhprebn dX",
    "gamma": "weight bngain",
    "beta": "bias bnbias",
    "kernel": "weight W w W1 W2",
    "bias": "b b1 b2",
    "mu": "mean bnmeani sample_mean save_mean batch_mean",
    "c": "xmu x_mu xc bndiff centered",
    "q": "sq bndiff2",
    "var": "bnvar sample_var save_var batch_var variance sigma2",
    "std": "sqrtvar",
    "inv_std": "ivar invstd inv_var bnvar_inv save_invstd rstd istd",
    "x_hat": "xhat x_norm xnorm x_normalized bnraw",
    "scaled": "gammax",
    "y": "out output hpreact",
    "z": "out output scores",
    "d_gamma": "dgamma dbngain grad_weight dweight dgain",
    "d_beta": "dbeta dbnbias grad_bias dbias",
    "d_kernel": "dW dw dweight grad_weight dW1 dW2",
    "d_bias": "db dbias grad_bias db1 db2",
    "d_scaled": "dgammax",
    "d_x_hat": "dxhat dx_hat dx_norm dxnorm dbnraw dx_normalized",
    "d_inv_std": "divar dinv_std dinv_var dbnvar_inv",
    "d_std": "dsqrtvar dstd",
    "d_var": "dvar dbnvar dsample_var dvariance",
    "d_q": "dsq dbndiff2",
    "d_c": "dxmu dxc dbndiff",
    "d_c_through_x_hat": "dxmu1",
    "d_c_through_q": "dxmu2",
    "d_mu": "dmu dmean dbnmeani dsample_mean",
    "dx_through_c": "dx1",
    "dx_through_mu": "dx2",
    "s": "probs softmax p sigmoid",
    "log_s": "logprobs log_probs",
    "shifted": "norm_logits shifted_logits",
    "d_logits": "dlogits dscores dx",
    "d_labels": "dlabels",
    "d_class_weights": "dclass_weights dweights",
    "d_predictions": "dpredictions dpred",
    "d_targets": "dtargets",
}

# Name: the steps it may stand for, of which a layer has one.
ALIASES: dict[str, tuple[str, ...]] = {}
for _ours, _names in _OTHERS.items():
    for _name in _names.split():
        ALIASES[_name] = (*ALIASES.get(_name, ()), _ours)
