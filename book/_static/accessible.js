// What the theme leaves out: names and landmarks for screen readers, and what is folded for paper.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll(".search-button__button:not(.pst-navbar-icon), .theme-switch-button")) {
    button.removeAttribute("aria-label"); // its text names it
  }
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Contents of the book");
});
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details.settings")) fold.open = true;
});
