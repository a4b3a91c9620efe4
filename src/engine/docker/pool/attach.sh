# Attaches the pool's file to a loop device; makes it first where it is missing. Arguments: the file,
# the device, the size in bytes, a folder with `blocks` (see `geometry` of pool.rs) and `place.sh`.
set -eu
file="$1" device="$2" size="$3" blocks="$4"
if [ ! -f "$file" ]; then
  # Another run has made one since we looked.
  for found in "${file%/*}"/*.xfs; do
    [ ! -f "$found" ] || { echo "busy: $found" >&2; exit 1; }
  done
  rm -f "$file.part"
  truncate -s "$size" "$file.part"
  sh "$blocks/place.sh" "$blocks/blocks" "$file.part"
  mv "$file.part" "$file"
fi
losetup "$device" "$file"
