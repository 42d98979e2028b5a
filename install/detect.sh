# What this host is, as far as the installation depends on it. MOE2_INSTALL_ROOT puts a folder in front of every path
# that is read or written, for tests and images; programs are found in PATH.

readonly ROOT=${MOE2_INSTALL_ROOT:-}

# What llama.cpp is compiled with on every host. Without LLAVA_BUILD it takes a third less time; that is for images, which
# moe2 does not serve. Its code for Intel's AMX crashes at its first tile where gcc optimizes the configuration of the
# tiles away (ggml-org/llama.cpp#20824, pull request 26954).
llama_base_flags() {
  printf -- '-DLLAVA_BUILD=OFF'
  if has_amx; then printf -- ' -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8'; fi
}

has_amx() { grep -qsw amx_int8 "$ROOT/proc/cpuinfo"; }

# One file's first line, without the NUL bytes that the device tree ends its strings with; nothing if there is none.
first_line() { if [[ -r $1 ]]; then tr -d '\0' <"$1" | head -n 1; fi; }

# Sets HOST_ARCH, HOST_KIND (jetson, nvidia or cpu), HOST_BOARD, and for a GPU what is known of: L4T, JETPACK, TEGRA,
# GPU_NAME, DRIVER_VERSION, DRIVER_CUDA, NVCC, NVCC_VERSION, CUDA_ARCHITECTURES, and MEMORY_KB. Unknown is empty.
detect_host() {
  HOST_ARCH=$(uname -m)
  [[ $HOST_ARCH != arm64 ]] || HOST_ARCH=aarch64
  HOST_BOARD=$(first_line "$ROOT/proc/device-tree/model")
  [[ -n $HOST_BOARD ]] || HOST_BOARD=$(first_line "$ROOT/sys/class/dmi/id/product_name")
  HOST_KIND=cpu L4T='' JETPACK='' TEGRA='' GPU_NAME='' DRIVER_VERSION='' DRIVER_CUDA='' CUDA_ARCHITECTURES=''
  if is_jetson; then
    HOST_KIND=jetson
    detect_jetson
  elif find_nvidia_smi && detect_nvidia; then
    HOST_KIND=nvidia
  fi
  detect_nvcc
  # Thor's architecture was renumbered with CUDA 13.
  if [[ $CUDA_ARCHITECTURES == thor ]]; then
    if [[ ${NVCC_VERSION%%.*} == 12 ]]; then CUDA_ARCHITECTURES=101; else CUDA_ARCHITECTURES=110; fi
  fi
  MEMORY_KB=$(sed -nE 's/^MemTotal: *([0-9]+) kB$/\1/p' "$ROOT/proc/meminfo" 2>/dev/null) || true
  SYSTEMD_VERSION=$(systemctl --version 2>/dev/null | sed -nE '1s/^systemd ([0-9]+).*/\1/p') || true
}

is_jetson() {
  [[ -e $ROOT/etc/nv_tegra_release ]] \
    || { [[ -r $ROOT/proc/device-tree/compatible ]] && grep -aq 'nvidia,tegra' "$ROOT/proc/device-tree/compatible"; }
}

detect_jetson() {
  local release
  release=$(first_line "$ROOT/etc/nv_tegra_release")
  # "# R36 (release), REVISION: 4.0, GCID: …" is L4T 36.4.0.
  L4T=$(sed -nE 's/^# R([0-9]+) .*REVISION: ([0-9.]+).*/\1.\2/p' <<<"$release")
  case ${L4T%%.*} in
    32) JETPACK=4 ;;
    34 | 35) JETPACK=5 ;;
    36) JETPACK=6 ;;
    38 | 39) JETPACK=7 ;;
  esac
  if [[ -r $ROOT/proc/device-tree/compatible ]]; then
    TEGRA=$(tr '\0' '\n' <"$ROOT/proc/device-tree/compatible" | sed -nE 's/^nvidia,(tegra[0-9]+)$/\1/p' | head -n 1)
  fi
  GPU_NAME="integrated GPU${TEGRA:+ of $TEGRA}"
  # Compute capabilities as NVIDIA lists them for its boards.
  case $TEGRA in
    tegra210) CUDA_ARCHITECTURES=53 ;;
    tegra186) CUDA_ARCHITECTURES=62 ;;
    tegra194) CUDA_ARCHITECTURES=72 ;; # Xavier
    tegra234) CUDA_ARCHITECTURES=87 ;; # Orin
    tegra264) CUDA_ARCHITECTURES=thor ;;
    *) CUDA_ARCHITECTURES=native ;;
  esac
}

# find_nvidia_smi: sets NVIDIA_SMI. In WSL it lies where sudo does not look.
find_nvidia_smi() {
  NVIDIA_SMI=$(command -v nvidia-smi) || {
    NVIDIA_SMI=$ROOT/usr/lib/wsl/lib/nvidia-smi
    [[ -x $NVIDIA_SMI ]]
  }
}

# True where the host has a graphics card of NVIDIA's, with a driver or without.
has_nvidia_card() {
  local device
  for device in "$ROOT"/sys/bus/pci/devices/*; do
    if [[ $(first_line "$device/vendor") == 0x10de && $(first_line "$device/class") == 0x03* ]]; then return 0; fi
  done
  return 1
}

# False where nvidia-smi finds no card, or no driver.
detect_nvidia() {
  local query
  GPU_NAME=$("$NVIDIA_SMI" --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || return 1
  [[ -n $GPU_NAME ]] || return 1
  DRIVER_VERSION=$("$NVIDIA_SMI" --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
  DRIVER_CUDA=$("$NVIDIA_SMI" 2>/dev/null | sed -nE 's/.*CUDA Version: *([0-9.]+).*/\1/p' | head -n 1) || true
  # 8.9 is 89; several cards are 86;89. A driver that is too old to say leaves it to the compiler to look.
  query=$("$NVIDIA_SMI" --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || query=''
  CUDA_ARCHITECTURES=$(sed -nE 's/^ *([0-9]+)\.([0-9]+) *$/\1\2/p' <<<"$query" | sort -nu | tr '\n' ';')
  CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES%;}
  CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES:-native}
}

# CUDA's compiler is often installed without being in PATH.
detect_nvcc() {
  NVCC='' NVCC_VERSION=''
  if command -v nvcc >/dev/null; then
    NVCC=$(command -v nvcc)
  elif [[ -x $ROOT/usr/local/cuda/bin/nvcc ]]; then
    NVCC=$ROOT/usr/local/cuda/bin/nvcc
  fi
  if [[ -n $NVCC ]]; then
    NVCC_VERSION=$("$NVCC" --version 2>/dev/null | sed -nE 's/.*release ([0-9.]+).*/\1/p' | head -n 1) || true
  fi
}

# oldest_nvcc ARCHITECTURE: the first CUDA toolkit that compiles for it; nothing where any will do.
oldest_nvcc() {
  case $1 in
    87) printf 11.4 ;;
    89 | 90) printf 11.8 ;;
    100 | 101 | 120) printf 12.8 ;;
    103 | 121) printf 12.9 ;;
    110) printf 13.0 ;;
  esac
}

# newest_nvcc ARCHITECTURE: the last toolkit that compiles for it; nothing where there is no last one yet.
newest_nvcc() {
  case $1 in
    50 | 52 | 53 | 60 | 61 | 62 | 70 | 72) printf 12.9 ;;
    101) printf 12.9 ;;
  esac
}

# nvcc_fault: why this nvcc cannot compile for these GPUs; nothing if it can, as far as is known.
nvcc_fault() {
  local each bound
  [[ -n $NVCC_VERSION ]] || return 0
  for each in ${CUDA_ARCHITECTURES//;/ }; do
    bound=$(oldest_nvcc "$each")
    if [[ -n $bound && $(printf '%s\n' "$bound" "$NVCC_VERSION" | sort -V | head -n 1) != "$bound" ]]; then
      printf 'nvcc %s does not know architecture %s: it needs CUDA %s or newer' "$NVCC_VERSION" "$each" "$bound"
      return
    fi
    bound=$(newest_nvcc "$each")
    if [[ -n $bound && $(printf '%s\n' "$bound" "$NVCC_VERSION" | sort -V | tail -n 1) != "$bound" ]]; then
      printf 'nvcc %s no longer knows architecture %s: it needs CUDA %s or older' "$NVCC_VERSION" "$each" "$bound"
      return
    fi
  done
}

# Two lines for people.
describe_host() {
  local gpu=''
  case $HOST_KIND in
    jetson) say "Host: Jetson, ${HOST_BOARD:-unknown board}, L4T ${L4T:-unknown}${JETPACK:+ (JetPack $JETPACK)}" ;;
    nvidia) say "Host: ${HOST_BOARD:-computer} with $GPU_NAME, driver ${DRIVER_VERSION:-unknown}" ;;
    cpu)
      if has_nvidia_card; then
        say "Host: ${HOST_BOARD:-computer} with an NVIDIA card that no driver answers for (nvidia-smi)"
      else
        say "Host: ${HOST_BOARD:-computer} without an NVIDIA GPU"
      fi
      ;;
  esac
  if [[ $HOST_KIND != cpu ]]; then
    gpu=", CUDA ${DRIVER_CUDA:+$DRIVER_CUDA (driver), }nvcc ${NVCC_VERSION:-not found}"
    gpu+=", architecture $CUDA_ARCHITECTURES"
  fi
  say "      $HOST_ARCH, systemd ${SYSTEMD_VERSION:-not found}$gpu"
}
