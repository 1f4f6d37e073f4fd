// What the theme leaves out for readers with a screen reader: names that match what is seen, and landmarks.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll(".search-button__button, .theme-switch-button")) {
    button.removeAttribute("aria-label"); // its text names it
  }
  const sidebar = document.querySelector(".bd-sidebar-primary");
  sidebar?.setAttribute("role", "complementary");
  sidebar?.setAttribute("aria-label", "Contents of the book");
});
