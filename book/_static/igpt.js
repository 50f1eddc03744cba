// A receipt opens on hover too, after a moment, and closes when the pointer leaves number and receipt.
// Without this script, and on touch and keyboard, the button's own popover does it all.
if (matchMedia("(hover: hover)").matches) {
  for (const button of document.querySelectorAll("button.receipt-button")) {
    const receipt = document.getElementById(button.getAttribute("popovertarget"));
    let timer, pinned = false;
    const later = (act, ms) => { clearTimeout(timer); timer = setTimeout(act, ms); };
    button.addEventListener("click", () => { pinned = true; clearTimeout(timer); });
    receipt.addEventListener("toggle", (event) => { if (event.newState === "closed") pinned = false; });
    button.addEventListener("mouseenter", () => later(() => { if (!receipt.matches(":popover-open")) receipt.showPopover({ source: button }); }, 350));
    receipt.addEventListener("mouseenter", () => clearTimeout(timer));
    for (const element of [button, receipt]) {
      element.addEventListener("mouseleave", () => { if (!pinned) later(() => receipt.matches(":popover-open") && receipt.hidePopover(), 250); });
    }
  }
}
