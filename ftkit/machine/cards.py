"""The table of GPUs: the figures of each card, and where they are from.

Memory is what the driver leaves to programs, as it stands in public out-of-memory messages ("GPU 0 has a total capacity
of 14.75 GiB"), rounded down; it is less than the label says. Where a card has no such message of its own, as most Ti,
Super and laptop cards, it is that of its generation's cards with the same label; a laptop's arithmetic is that at its
highest boost clock, which thin ones do not reach. Of the A2000, the RTX 2050, the RTX 3050 with 6 GB and the
RTX 4050 it is that of cards with the same label: 3.81 GiB of 4 GB (RTX 3050 Laptop, NVlabs/RVT issue 7), 5.79 GiB of
6 GB (RTX 2060, facebookresearch/meshrcnn issue 92). Bandwidth and dense tensor throughput with fp32 accumulation are
the vendors' (data sheets, white papers of Pascal, Volta, Turing, Ampere GA100 and GA102, Ada, Hopper, Blackwell, CDNA2,
CDNA3; of the RTX 2050 hardware-nvidia.ts of huggingface.js); half precision on cards without tensor cores is their fp32
rate, which is what cuBLAS computes in. A card of two dies counts as one die, since that is what one process sees.
Multiprocessors are the vendors' too, AMD's compute units among them: where a data sheet has cores alone, these divided
by the cores of one (128 of Pascal's, 64 of P100's, Volta's, Turing's and GA100's, 128 of GA10x, Ada, Hopper and
Blackwell: the same white papers). The A10G has 80, as the driver says (`multi_processor_count`), and the H200 132.
"""

PCIE3 = 16e9
PCIE4 = 32e9
PCIE5 = 64e9

Row = tuple[float, float, float, float, tuple[int, int], int, float]
"""GiB, GB/s, fp32 TFLOP/s, half TFLOP/s, capability, multiprocessors, and bytes per second of the link."""
# name: GiB, GB/s, fp32 TFLOP/s, half TFLOP/s, capability, multiprocessors, link
NVIDIA: dict[str, Row] = {
    "GTX 1060 6GB": (5.92, 192, 4.4, 4.4, (6, 1), 10, PCIE3),
    "GTX 1050 Ti": (3.94, 112, 2.1, 2.1, (6, 1), 6, PCIE3),
    "GTX 1070": (7.92, 256, 6.5, 6.5, (6, 1), 15, PCIE3),
    "GTX 1070 Ti": (7.92, 256, 8.2, 8.2, (6, 1), 19, PCIE3),
    "GTX 1080": (7.92, 320, 8.9, 8.9, (6, 1), 20, PCIE3),
    "GTX 1080 Ti": (10.91, 484, 11.3, 11.3, (6, 1), 28, PCIE3),
    "P100": (15.89, 732, 9.3, 18.7, (6, 0), 56, PCIE3),
    "P40": (22.38, 346, 11.8, 11.8, (6, 1), 30, PCIE3),
    "GTX 1650": (3.81, 128, 3.0, 6.0, (7, 5), 14, PCIE3),
    "GTX 1660 Ti": (5.80, 288, 5.4, 10.9, (7, 5), 24, PCIE3),
    "GTX 1660 Super": (5.80, 336, 5.0, 10.0, (7, 5), 22, PCIE3),
    "RTX 2060": (5.79, 336, 6.5, 25.8, (7, 5), 30, PCIE3),
    "RTX 2060 Super": (7.79, 448, 7.2, 28.7, (7, 5), 34, PCIE3),
    "RTX 2070": (7.79, 448, 7.5, 29.9, (7, 5), 36, PCIE3),
    "RTX 2070 Super": (7.79, 448, 9.1, 36.3, (7, 5), 40, PCIE3),
    "RTX 2080": (7.79, 448, 10.1, 40.3, (7, 5), 46, PCIE3),
    "RTX 2080 Super": (7.79, 496, 11.2, 44.6, (7, 5), 48, PCIE3),
    "RTX 2080 Ti": (10.75, 616, 13.4, 53.8, (7, 5), 68, PCIE3),
    "Titan RTX": (23.64, 672, 16.3, 130.5, (7, 5), 72, PCIE3),
    "T4": (14.56, 320, 8.1, 65, (7, 5), 40, PCIE3),
    "V100-16GB": (15.77, 900, 15.7, 125, (7, 0), 80, 150e9),
    "V100-32GB": (31.73, 900, 15.7, 125, (7, 0), 80, 150e9),
    "RTX 2050": (3.81, 112, 5.1, 10.2, (8, 6), 16, PCIE3),
    "RTX 3050 Laptop": (3.81, 192, 7.1, 14.2, (8, 6), 16, PCIE4),
    "RTX 3050 Ti Laptop": (3.81, 192, 8.7, 17.4, (8, 6), 20, PCIE4),
    "RTX 3050 6GB": (5.79, 168, 6.8, 13.5, (8, 6), 18, PCIE4),
    "RTX 3050": (7.79, 224, 9.1, 18.2, (8, 6), 20, PCIE4),
    "RTX 3060 Laptop": (5.79, 336, 13.1, 26.2, (8, 6), 30, PCIE4),
    "RTX 3060": (11.75, 360, 12.7, 25.6, (8, 6), 28, PCIE4),
    "RTX 3060 Ti": (7.78, 448, 16.2, 32.4, (8, 6), 38, PCIE4),
    "RTX 3070 Laptop": (7.78, 448, 16.6, 33.2, (8, 6), 40, PCIE4),
    "RTX 3070": (7.78, 448, 20.3, 40.6, (8, 6), 46, PCIE4),
    "RTX 3070 Ti": (7.78, 608, 21.7, 43.5, (8, 6), 48, PCIE4),
    "RTX 3080": (9.77, 760, 29.8, 59.5, (8, 6), 68, PCIE4),
    "RTX 3080 Ti": (11.75, 912, 34.1, 68.2, (8, 6), 80, PCIE4),
    "RTX 3090": (23.67, 936, 35.6, 71.0, (8, 6), 82, PCIE4),
    "RTX 3090 Ti": (23.67, 1008, 40.0, 80.0, (8, 6), 84, PCIE4),
    "RTX A2000 6GB": (5.79, 288, 8.0, 31.9, (8, 6), 26, PCIE4),
    "RTX A2000 12GB": (11.75, 288, 8.0, 31.9, (8, 6), 26, PCIE4),
    "RTX A4000": (15.72, 448, 19.2, 76.7, (8, 6), 48, PCIE4),
    "RTX A5000": (23.67, 768, 27.8, 111.1, (8, 6), 64, PCIE4),
    "RTX A6000": (47.53, 768, 38.7, 154.8, (8, 6), 84, PCIE4),
    "A10": (22.05, 600, 31.2, 125, (8, 6), 72, PCIE4),
    "A10G": (22.05, 600, 31.5, 70, (8, 6), 80, PCIE4),
    "A30": (23.49, 933, 10.3, 165, (8, 0), 56, PCIE4),
    "A40": (44.33, 696, 37.4, 149.7, (8, 6), 84, PCIE4),
    "A100-40GB": (39.38, 1555, 19.5, 312, (8, 0), 108, 300e9),
    "A100-80GB": (79.10, 2039, 19.5, 312, (8, 0), 108, 300e9),
    "RTX 4050 Laptop": (5.79, 192, 12.1, 24.2, (8, 9), 20, PCIE4),
    "RTX 4060 Laptop": (7.62, 256, 14.6, 29.1, (8, 9), 24, PCIE4),
    "RTX 4060": (7.62, 272, 15.1, 30.2, (8, 9), 24, PCIE4),
    "RTX 4060 Ti": (7.62, 288, 22.1, 44.1, (8, 9), 34, PCIE4),
    "RTX 4060 Ti 16GB": (15.59, 288, 22.1, 44.1, (8, 9), 34, PCIE4),
    "RTX 4070 Laptop": (7.62, 256, 20.0, 40.1, (8, 9), 36, PCIE4),
    "RTX 4070": (11.61, 504, 29.1, 58.3, (8, 9), 46, PCIE4),
    "RTX 4070 Super": (11.61, 504, 35.5, 71.0, (8, 9), 56, PCIE4),
    "RTX 4070 Ti": (11.61, 504, 40.1, 80.2, (8, 9), 60, PCIE4),
    "RTX 4070 Ti Super": (15.58, 672, 44.1, 88.2, (8, 9), 66, PCIE4),
    "RTX 4080 Laptop": (11.61, 432, 33.9, 67.7, (8, 9), 58, PCIE4),
    "RTX 4080": (15.58, 717, 48.7, 97.5, (8, 9), 76, PCIE4),
    "RTX 4090 Laptop": (15.58, 576, 39.7, 79.4, (8, 9), 76, PCIE4),
    "RTX 4090": (23.52, 1008, 82.6, 165.2, (8, 9), 128, PCIE4),
    "L4": (21.95, 300, 30.3, 121, (8, 9), 58, PCIE4),
    "L40S": (44.31, 864, 91.6, 362, (8, 9), 142, PCIE4),
    "RTX 6000 Ada": (47.37, 960, 91.1, 364, (8, 9), 142, PCIE4),
    "H100": (79.10, 3350, 67, 989, (9, 0), 132, 450e9),
    "H100 PCIe": (79.10, 2000, 51, 756, (9, 0), 114, PCIE5),
    "H200": (139.7, 4800, 67, 989, (9, 0), 132, 450e9),
    "RTX 5060 Ti": (7.62, 448, 23.7, 47.4, (12, 0), 36, PCIE5),
    "RTX 5060 Ti 16GB": (15.47, 448, 23.7, 47.4, (12, 0), 36, PCIE5),
    "RTX 5070": (11.5, 672, 30.9, 61.7, (12, 0), 48, PCIE5),
    "RTX 5070 Ti": (15.46, 896, 43.9, 87.9, (12, 0), 70, PCIE5),
    "RTX 5080": (15.46, 960, 56.3, 112.6, (12, 0), 84, PCIE5),
    "RTX 5090": (31.34, 1792, 104.8, 209.5, (12, 0), 170, PCIE5),
    "B200": (178.3, 7700, 75, 2250, (10, 0), 148, 900e9),
}
AMD: dict[str, Row] = {
    "MI210": (63.98, 1638, 22.6, 181, (9, 0), 104, 150e9),
    "MI250": (63.98, 1638, 22.6, 181, (9, 0), 104, 150e9),
    "MI250X": (63.98, 1638, 23.9, 191.5, (9, 0), 110, 150e9),
    "MI300X": (191.6, 5300, 163.4, 1307, (9, 0), 304, 448e9),
}
HOST_LINKS: dict[str, float] = {
    **dict.fromkeys(("V100-16GB", "V100-32GB"), PCIE3),
    **dict.fromkeys(("A100-40GB", "A100-80GB", "MI210", "MI250", "MI250X"), PCIE4),
    **dict.fromkeys(("H100", "H200", "B200", "MI300X"), PCIE5),
    "RTX 2050": PCIE3 / 2,
    **dict.fromkeys(("RTX 3050 Laptop", "RTX 3050 Ti Laptop", "RTX 3050 6GB", "RTX 3050"), PCIE4 / 2),
    **dict.fromkeys(("RTX 4050 Laptop", "RTX 4060 Laptop", "RTX 4070 Laptop"), PCIE4 / 2),
    **dict.fromkeys(("RTX 4060", "RTX 4060 Ti", "RTX 4060 Ti 16GB"), PCIE4 / 2),
    **dict.fromkeys(("RTX 5060 Ti", "RTX 5060 Ti 16GB"), PCIE5 / 2),
}
"""Bytes per second to the host's memory where that is not `link`: cards that are linked to one another in another way,
and those with 8 lanes of PCIe for 16. These are the RTX 3050 and all of GA107 (TechPowerUp's review of the Gigabyte RTX
3050 Gaming OC; the RTX 2050, of GA107, has them in generation 3: 1vs1.site), all of AD106 and AD107 (Game-Drip on
Palit's RTX 4060, whose board shows it), and the RTX 5060 Ti (TechPowerUp's review of its PCI-Express x8 scaling)."""
ALIASES = {
    "1060": "GTX 1060 6GB",
    "gtx1060": "GTX 1060 6GB",
    "3050-4gb": "RTX 3050 Laptop",
    "rtx3050-4gb": "RTX 3050 Laptop",
    "3050-8gb": "RTX 3050",
    "rtx3050-8gb": "RTX 3050",
    "4050": "RTX 4050 Laptop",
    "rtx4050": "RTX 4050 Laptop",
    "a2000": "RTX A2000 6GB",
    "rtxa2000": "RTX A2000 6GB",
    "v100": "V100-16GB",
    "a100": "A100-40GB",
    "a100-sxm4-40gb": "A100-40GB",
    "a100-sxm4-80gb": "A100-80GB",
    "h100-sxm": "H100",
    "mi300": "MI300X",
}
