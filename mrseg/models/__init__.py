"""The papers' networks: functions that take an input shape and return a keras.Model."""

from mrseg._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "mecheter2020": ["segnet"],
        "mecheter2023": ["se_unet3d"],
        "xu2017": ["load_vgg16", "vgg_fcn"],
        "alkhimova2022": ["res_unet"],
        "islam2025": ["attention_unet", "sep_res_unet", "unet"],
        "normalization": ["LocalContrast", "MinMax", "QuantileZScore"],
        "builders": ["BUILDERS", "NETWORKS", "list"],
    },
)
