//! MedMNIST's 2-D sets (Yang et al. 2023), 28 × 28, one npz file each. Their validation images are used by none of the splits here.
//!
//! Their authors publish no sizes; the arrays unpacked have at most 252 MB (pathmnist's 107,180 colour images).

use super::{Checksum, DatasetSpec, Layout, RemoteFile, Size, SplitSizes};

const ORGANS: &[&str] = &[
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
];

macro_rules! medmnist {
    ($(#[$meta:meta])* $constant:ident, $name:literal, $summary:literal, $train:literal, $test:literal, $md5:literal, $licence:literal, $classes:expr) => {
        $(#[$meta])*
        pub(super) const $constant: DatasetSpec = DatasetSpec {
            name: $name,
            summary: concat!("MedMNIST, 28 × 28: ", $summary),
            licence: $licence,
            homepage: "https://medmnist.com",
            citation: "Yang et al.: MedMNIST v2, Scientific Data 10:41, 2023",
            classes: $classes,
            splits: SplitSizes { train: $train, test: $test },
            files: &[RemoteFile {
                name: concat!($name, ".npz"),
                urls: &[
                    concat!("https://zenodo.org/records/10519652/files/", $name, ".npz?download=1"),
                    concat!("https://zenodo.org/record/6496656/files/", $name, ".npz?download=1"),
                ],
                size: Size::AtMost(260_000_000),
                checksum: Checksum::Md5($md5),
            }],
            layout: Layout::Npz,
        };
    };
}

/// All of them.
pub(super) const ALL: &[DatasetSpec] =
    &[PATH, CHEST, DERMA, OCT, PNEUMONIA, RETINA, BREAST, BLOOD, TISSUE, ORGAN_A, ORGAN_C, ORGAN_S];

medmnist!(
    /// pathmnist.
    PATH,
    "pathmnist",
    "89,996 + 7,180 colour patches of tissue, 9 classes",
    89996,
    7180,
    "a8b06965200029087d5bd730944a56c1",
    "CC-BY-4.0",
    &["adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium"]
);
medmnist!(
    /// chestmnist.
    CHEST,
    "chestmnist",
    "78,468 + 22,433 gray chest X-rays; fourteen labels an image, taken as none",
    78468,
    22433,
    "02c8a6516a18b556561a56cbdd36c4a8",
    "CC-BY-4.0",
    &[]
);
medmnist!(
    /// dermamnist.
    DERMA,
    "dermamnist",
    "7,007 + 2,005 colour pictures of skin, 7 classes",
    7007,
    2005,
    "0744692d530f8e62ec473284d019b0c7",
    "CC-BY-NC-4.0",
    &["actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"]
);
medmnist!(
    /// octmnist.
    OCT,
    "octmnist",
    "97,477 + 1,000 gray sections of the retina, 4 classes",
    97477,
    1000,
    "c68d92d5b585d8d81f7112f81e2d0842",
    "CC-BY-4.0",
    &["choroidal neovascularization", "diabetic macular edema", "drusen", "normal"]
);
medmnist!(
    /// pneumoniamnist.
    PNEUMONIA,
    "pneumoniamnist",
    "4,708 + 624 gray chest X-rays of children, 2 classes",
    4708,
    624,
    "28209eda62fecd6e6a2d98b1501bb15f",
    "CC-BY-4.0",
    &["normal", "pneumonia"]
);
medmnist!(
    /// retinamnist.
    RETINA,
    "retinamnist",
    "1,080 + 400 colour pictures of the retina, 5 grades",
    1080,
    400,
    "bd4c0672f1bba3e3a89f0e4e876791e4",
    "CC-BY-4.0",
    &["0", "1", "2", "3", "4"]
);
medmnist!(
    /// breastmnist.
    BREAST,
    "breastmnist",
    "546 + 156 gray ultrasound pictures, 2 classes",
    546,
    156,
    "750601b1f35ba3300ea97c75c52ff8f6",
    "CC-BY-4.0",
    &["malignant", "normal, benign"]
);
medmnist!(
    /// bloodmnist.
    BLOOD,
    "bloodmnist",
    "11,959 + 3,421 colour pictures of blood cells, 8 classes",
    11959,
    3421,
    "7053d0359d879ad8a5505303e11de1dc",
    "CC-BY-4.0",
    &["basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil", "platelet"]
);
medmnist!(
    /// tissuemnist.
    TISSUE,
    "tissuemnist",
    "165,466 + 47,280 gray pictures of kidney cells, 8 classes",
    165466,
    47280,
    "ebe78ee8b05294063de985d821c1c34b",
    "CC-BY-4.0",
    &["collecting duct, connecting tubule", "distal convoluted tubule", "glomerular endothelial cells", "interstitial endothelial cells", "leukocytes", "podocytes", "proximal tubule segments", "thick ascending limb"]
);
medmnist!(
    /// organamnist.
    ORGAN_A,
    "organamnist",
    "34,581 + 17,778 gray CT sections (axial), 11 organs",
    34581,
    17778,
    "866b832ed4eeba67bfb9edee1d5544e6",
    "CC-BY-4.0",
    ORGANS
);
medmnist!(
    /// organcmnist.
    ORGAN_C,
    "organcmnist",
    "13,000 + 8,268 gray CT sections (coronal), 11 organs",
    13000,
    8268,
    "0afa5834fb105f7705a7d93372119a21",
    "CC-BY-4.0",
    ORGANS
);
medmnist!(
    /// organsmnist.
    ORGAN_S,
    "organsmnist",
    "13,940 + 8,829 gray CT sections (sagittal), 11 organs",
    13940,
    8829,
    "e5c39f1af030238290b9557d9503af9d",
    "CC-BY-4.0",
    ORGANS
);
