# Looks at the pool's own volume. Argument: its folder.
# Prints lines: `reflinks`, `free KB`, `file NAME`, `attached N`, `unused N`.
cd "$1"
: >.probe
if cp --reflink=always .probe .probe2 2>/dev/null; then echo reflinks; fi
rm -f .probe .probe2
echo "free $(df -Pk . | tail -n 1 | awk '{ print $4 }')"
file=
for found in *.xfs; do
  [ ! -f "$found" ] || file="$found"
done
[ -z "$file" ] || echo "file $file"
for device in /sys/block/loop*; do
  number="${device##*/loop}"
  backing=$(cat "$device/loop/backing_file" 2>/dev/null || true)
  case "$backing" in
    '') echo "unused $number" ;;
    */"${file:-none}") echo "attached $number" ;;
  esac
done
